"""What to do about a spike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from vlmkit.errors import UserError
from vlmkit.training.survival.verdict import Verdict


class TooManyRollBacksError(UserError):
    """Going back does not help."""


class SpikeAction(Protocol):
    """Makes a verdict of a spike, and of the steps after it."""

    def on_spike(self, step: int, reason: str) -> Verdict:
        """What becomes of a step with a spike."""
        ...

    def otherwise(self, step: int) -> Verdict:
        """What becomes of a step without."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class LogSpike:
    """Applies the step; the log and the incidents folder tell of it."""

    def on_spike(self, step: int, reason: str) -> Verdict:
        """See `SpikeAction.on_spike`."""
        return Verdict(reason=reason)

    def otherwise(self, step: int) -> Verdict:
        """See `SpikeAction.otherwise`."""
        return Verdict()

    def state_dict(self) -> dict[str, Any]:
        """See `SpikeAction.state_dict`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `SpikeAction.load_state_dict`."""


class SkipStep(LogSpike):
    """Leaves the step out."""

    def on_spike(self, step: int, reason: str) -> Verdict:
        """See `SpikeAction.on_spike`."""
        return Verdict(apply=False, reason=reason)


class LowerRate:
    """Lowers the learning rates for a while, from the spike on; another spike begins the while anew.

    Args:
        factor: on the rates.
        num_steps: with the lower rate, that of the spike included.
    """

    def __init__(self, factor: float = 0.1, num_steps: int = 100) -> None:
        if not 0 < factor <= 1 or num_steps < 1:
            raise ValueError(
                f"factor is {factor} and num_steps {num_steps}; the first is above 0 and at most 1, the "
                "second positive"
            )
        self.factor, self.num_steps = factor, num_steps
        self.steps_left = 0

    def on_spike(self, step: int, reason: str) -> Verdict:
        """See `SpikeAction.on_spike`."""
        self.steps_left = self.num_steps - 1
        return Verdict(reason=reason, rate=self.factor)

    def otherwise(self, step: int) -> Verdict:
        """See `SpikeAction.otherwise`."""
        if not self.steps_left:
            return Verdict()
        self.steps_left -= 1
        return Verdict(rate=self.factor)

    def state_dict(self) -> dict[str, Any]:
        """See `SpikeAction.state_dict`."""
        return {"steps_left": self.steps_left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `SpikeAction.load_state_dict`."""
        self.steps_left = state["steps_left"]


class RollBack:
    """Goes back to weights and moments of an earlier checkpoint, and on with the data after the spike.

    The samples between that checkpoint and the spike are not seen again: the same data from the same
    weights would lead to the same spike (Chowdhery et al. 2022, PaLM, section 5.1).

    Args:
        back: 1 for the last checkpoint, 2 for the one before.
        most: roll-backs within `within` steps before the run ends.
        within: steps.
    """

    def __init__(self, back: int = 1, most: int = 3, within: int = 1000) -> None:
        if back < 1 or most < 1 or within < 1:
            raise ValueError(f"back is {back}, most {most} and within {within}; all are positive")
        self.back, self.most, self.within = back, most, within
        self._steps: list[int] = []

    def on_spike(self, step: int, reason: str) -> Verdict:
        """See `SpikeAction.on_spike`.

        Raises:
            TooManyRollBacksError: says at which steps.
        """
        self._steps = [known for known in self._steps if known > step - self.within]
        if len(self._steps) >= self.most:
            raise TooManyRollBacksError(
                f"step {step}: {reason}; after going back at steps "
                f"{', '.join(map(str, self._steps))} already, the limit of {self.most} within "
                f"{self.within} steps. Other data do not help: lower the learning rate, or clip earlier"
            )
        self._steps.append(step)
        return Verdict(apply=False, reason=reason, roll_back=self.back)

    def otherwise(self, step: int) -> Verdict:
        """See `SpikeAction.otherwise`."""
        return Verdict()

    def state_dict(self) -> dict[str, Any]:
        """See `SpikeAction.state_dict`."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `SpikeAction.load_state_dict`."""
        self._steps = list(state["steps"])
