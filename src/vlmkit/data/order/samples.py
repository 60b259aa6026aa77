"""The samples of a run: a mixture, processed, kept within what a row holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.over_length import Remedy, fit
from vlmkit.data.order.work import Ints, Limits, Sizes
from vlmkit.data.processor import Plan, Processor
from vlmkit.data.record import Conversation
from vlmkit.data.sizes.settings_key import differences, plain, processor_key, processor_keys
from vlmkit.data.sizes.size_table import REASONS
from vlmkit.errors import ConfigError, DataError, Reason


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that was left out, and why."""

    index: int  # in the mixture
    source: str
    origin: str
    code: Reason
    message: str


class Samples:
    """Sample `index` of the mixture as a plan; the same whoever asks and whenever.

    Args:
        mixture: which conversation.
        processor: how it is laid out.
        limits: what a row holds.
    """

    def __init__(self, mixture: Mixture, processor: Processor, limits: Limits) -> None:
        self.mixture, self.processor, self.limits = mixture, processor, limits
        for name, part in mixture.parts.items():
            if part.sizes is not None:
                self._check_table(name, part)

    def plan(self, index: int) -> Plan | Skipped:
        """Lay sample `index` out from headers, made to fit."""
        at = self.mixture.locate(np.array([index]))
        name = self.mixture.names[int(at.part[0])]
        return self.plan_of(name, self.mixture.parts[name], int(at.position[0]), index)

    def plan_of(self, name: str, part: Weighted, position: int, index: int) -> Plan | Skipped:
        """Lay a sample of one source out; `index` is what it is called if it cannot be used."""
        conversation: Conversation | None = None
        try:
            conversation = replace(part.source[position], source=name)
            return plan_within(conversation, self.processor, self.limits, part.over_length)
        except DataError as error:
            origin = conversation.origin if conversation is not None else ""
            return Skipped(
                index=index, source=name, origin=origin, code=error.code, message=str(error)
            )

    def sizes(
        self, indices: Ints, planned: dict[int, Plan | Skipped] | None = None
    ) -> tuple[Sizes, list[Skipped | None]]:
        """Sizes of samples: from the table of their source, or else by planning them.

        Args:
            indices: of the samples.
            planned: receives the first plans that were made, for whoever needs them next.

        Returns:
            Sizes, and for each sample why it is left out, or None. Sizes of those left out are 0.
        """
        at = self.mixture.locate(indices)
        sizes = Sizes(**{name: np.zeros(len(indices), dtype=np.int64) for name in vars(_EMPTY)})
        skipped: list[Skipped | None] = [None] * len(indices)
        for number, (name, part) in enumerate(self.mixture.parts.items()):
            places = np.flatnonzero(at.part == number)
            if not len(places):
                continue
            if part.sizes is None:
                plans: list[Plan | Skipped] = []
                for index in indices[places]:
                    plans.append(self.plan(int(index)))
                    if planned is not None and len(planned) < _PLANS_KEPT:
                        planned[int(index)] = plans[-1]
                good = [i for i, plan in enumerate(plans) if isinstance(plan, Plan)]
                found = Sizes.of([plan for plan in plans if isinstance(plan, Plan)])
                _write(sizes, places[good], found)
                for place, plan in zip(places, plans, strict=True):
                    skipped[place] = plan if isinstance(plan, Skipped) else None
                continue
            positions = at.position[places]
            codes = part.sizes.codes[positions]
            _write(sizes, places[codes == 0], part.sizes.at(positions[codes == 0]))
            for i in np.flatnonzero(codes):
                index = int(indices[places[i]])
                skipped[places[i]] = Skipped(
                    index=index,
                    source=name,
                    origin=f"{name}[{positions[i]}]",
                    code=REASONS[int(codes[i]) - 1],
                    message="left out when its size was measured",
                )
        return sizes, skipped

    def load(self, plan: Plan, index: int, out: Tensor | None = None) -> Any:
        """Decode a plan: an Example, or why not; `out` takes its patches if it is given."""
        try:
            return plan.load(out)
        except DataError as error:
            conversation = plan.conversation
            return Skipped(
                index=index,
                source=conversation.source,
                origin=conversation.origin,
                code=error.code,
                message=str(error),
            )

    def outgrown(self, plan: Plan, index: int) -> Skipped:
        """Say that a sample does not fit into the row that its size in the table earned it."""
        origin, source = plan.conversation.origin, plan.conversation.source
        message = (
            f"{origin or source}: {plan.num_tokens} tokens and {plan.num_patches} patches are not what was "
            "measured; its files have changed since, so run python -m vlmkit.stats write_sizes=true again"
        )
        return Skipped(
            index=index, source=source, origin=origin, code=Reason.TOO_LONG, message=message
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the samples depend on."""
        return {
            **self.mixture.fingerprint,
            "limits": {"tokens": self.limits.tokens, "patches": self.limits.patches},
            "processor": processor_key(self.processor),
            "over_length": {
                name: [str(plain(remedy)) for remedy in part.over_length]
                for name, part in self.mixture.parts.items()
            },
        }

    def _check_table(self, name: str, part: Weighted) -> None:
        assert part.sizes is not None
        expected = table_key(part, self.processor, self.limits)
        if part.sizes.key != expected or len(part.sizes) != len(part.source):
            differs = _differences(part.sizes.key, expected) or ["the number of samples"]
            raise ConfigError(
                f"the sizes of {name} do not belong to this run: {'; '.join(differs)}. Measure again with "
                "the options of this run: python -m vlmkit.stats write_sizes=true ..."
            )


def plan_within(
    conversation: Conversation, processor: Processor, limits: Limits, remedies: Sequence[Remedy]
) -> Plan:
    """Plan a training sample so that it fits into a row and has something to learn from.

    Raises:
        DataError: it does not fit, nothing of it is scored, or a part of it cannot be read.
    """
    return made_to_fit(processor.plan(conversation), processor, limits, remedies)[0]


def made_to_fit(
    plan: Plan, processor: Processor, limits: Limits, remedies: Sequence[Remedy]
) -> tuple[Plan, int]:
    """A version of a planned sample that fits into a row, and which remedy it took: from 1, 0 for none.

    Raises:
        DataError: it does not fit, or nothing of it is scored.
    """

    def again(shorter: Conversation, share: float) -> Plan:
        return processor.plan(shorter, media_share=share)

    fitting, number = fit(plan, limits, remedies, again)
    if not fitting.num_scored:
        conversation = plan.conversation
        raise DataError(
            f"{conversation.origin or conversation.source}: no turn of it is scored",
            Reason.NOTHING_SCORED,
        )
    return fitting, number


def measure(
    part: Weighted, processor: Processor, limits: Limits, position: int
) -> tuple[Sizes, Reason | None]:
    """Size of one sample of a source, or why it cannot be used."""
    try:
        conversation = part.source[position]
        return Sizes.of([plan_within(conversation, processor, limits, part.over_length)]), None
    except DataError as error:
        return _ZERO, error.code


def table_key(part: Weighted, processor: Processor, limits: Limits) -> str:
    """What the sizes of a source depend on: names with plain values or short hashes, as JSON."""
    remedies = [plain(remedy) for remedy in part.over_length]
    what = {
        "samples": len(part.source),
        "content": getattr(part.source, "fingerprint", None),
        **processor_keys(processor),
        "row_tokens": limits.tokens,
        "row_patches": limits.patches,
        "over_length": remedies,
    }
    return json.dumps(what, default=str)


def _differences(theirs: str, ours: str) -> list[str]:
    """What two keys do not agree on."""
    try:
        return list(differences(json.loads(theirs), json.loads(ours)))
    except ValueError:
        return ["they were measured with other data, another processor or another row length"]


_PLANS_KEPT = 256
"""Plans of one step that are kept; they hold pictures in memory and opened videos."""

_EMPTY = Sizes.of([])
_ZERO = Sizes(**{name: np.zeros(1, dtype=np.int64) for name in vars(_EMPTY)})


def _write(into: Sizes, places: Ints, values: Sizes) -> None:
    for name, column in vars(into).items():
        column[places] = getattr(values, name)
