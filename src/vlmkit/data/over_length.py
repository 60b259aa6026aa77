"""What to do with samples that do not fit into a row; decided from headers, before any decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from vlmkit.data.processor import Plan
from vlmkit.data.record import Conversation
from vlmkit.data.work import Limits
from vlmkit.errors import DataError, Reason

PlanAgain = Callable[[Conversation, float], Plan]
"""Plans a conversation with a share of the pixel budgets."""


class Remedy(Protocol):
    """A way to make a sample shorter that never cuts inside a picture or video."""

    def attempts(self, plan: Plan, plan_again: PlanAgain) -> Iterator[Plan]:
        """Shorter and shorter versions of a sample."""
        ...


class ShrinkMedia:
    """Lowers the pixel budgets of pictures and videos, and takes fewer frames, step by step.

    Args:
        smallest: share of the budgets below which nothing is lowered.
        factor: from one attempt to the next.
    """

    def __init__(self, smallest: float = 0.05, factor: float = 0.8) -> None:
        if not 0 < smallest < 1 or not 0 < factor < 1:
            raise ValueError(f"smallest {smallest} and factor {factor} must lie between 0 and 1")
        self.smallest, self.factor = smallest, factor

    def attempts(self, plan: Plan, plan_again: PlanAgain) -> Iterator[Plan]:
        """See `Remedy.attempts`."""
        share = self.factor
        while plan.media and share >= self.smallest:
            yield plan_again(plan.conversation, share)
            share *= self.factor


class DropTurns:
    """Leaves out the last exchanges, one by one. At least one answer that is scored stays."""

    def attempts(self, plan: Plan, plan_again: PlanAgain) -> Iterator[Plan]:
        """See `Remedy.attempts`."""
        messages = plan.conversation.messages
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        for last in reversed(answers[:-1]):
            kept = messages[: last + 1]
            if any(message.is_scored for message in kept):
                yield plan_again(replace(plan.conversation, messages=kept), 1.0)


def fit(plan: Plan, limits: Limits, remedies: Sequence[Remedy], plan_again: PlanAgain) -> Plan:
    """A version of a sample that fits into a row: the first that one of the remedies finds.

    Raises:
        DataError: none fits (`too_long`); names the sizes.
    """
    if limits.hold(plan):
        return plan
    for remedy in remedies:
        for attempt in remedy.attempts(plan, plan_again):
            if limits.hold(attempt):
                return attempt
    raise DataError(
        f"{plan.conversation.origin or plan.conversation.source or 'a sample'}: {plan.num_tokens} tokens "
        f"and {plan.num_patches} patches do not fit into a row of {limits.tokens} tokens"
        + (f" and {limits.patches} patches" if limits.patches is not None else ""),
        Reason.TOO_LONG,
    )
