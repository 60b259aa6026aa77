"""What to do with samples that do not fit into a row; decided from headers, before any decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from vlmkit.data.order.work import Limits
from vlmkit.data.processor import Plan
from vlmkit.data.record import Conversation
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
        share = self.factor * plan.media_share
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
                yield plan_again(replace(plan.conversation, messages=kept), plan.media_share)


def fit(
    plan: Plan, limits: Limits, remedies: Sequence[Remedy], plan_again: PlanAgain
) -> tuple[Plan, int]:
    """A version of a sample that fits into a row: the first that a remedy finds on its own.

    Where none does, each goes on from the shortest version of the one before it.

    Returns:
        The version, and the number of the remedy that found it: from 1, 0 for none.

    Raises:
        DataError: none fits (`too_long`); names the sizes.
    """
    if limits.hold(plan):
        return plan, 0
    for together in (False, True) if len(remedies) > 1 else (False,):
        shortest = plan
        for number, remedy in enumerate(remedies, start=1):
            for attempt in remedy.attempts(shortest if together else plan, plan_again):
                if limits.hold(attempt):
                    return attempt, number
                shortest = attempt
    raise DataError(
        f"{plan.conversation.origin or plan.conversation.source or 'a sample'}: {plan.num_tokens} tokens "
        f"and {plan.num_patches} patches do not fit into a row of {limits.tokens} tokens"
        + (f" and {limits.patches} patches" if limits.patches is not None else ""),
        Reason.TOO_LONG,
    )
