"""What is decided between the backward pass and the optimiser: whether a step is applied, and how."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vlmkit.errors import UserError
from vlmkit.training.survival.spike_actions import SpikeAction
from vlmkit.training.survival.verdict import Verdict

logger = logging.getLogger(__name__)

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_LEAST_SIGMA = 1e-3  # of the median: a loss that does not move at all is no reason to see spikes


class TooManyNonFiniteError(UserError):
    """More steps than may be left out had a loss or a gradient that is not finite."""


class StepGuard(Protocol):
    """Judges a step by numbers that all ranks share, so that all ranks judge alike."""

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """Called once a step, in order; `loss` and `grad_norm` are over all ranks, before clipping."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class NonFiniteGuard:
    """Leaves out steps whose loss or gradient norm is not finite, as long as they are few."""

    def __init__(self, max_in_a_row: int = 5, max_share: float = 0.02, window: int = 1000) -> None:
        """Keep the limits.

        Args:
            max_in_a_row: steps left out one after the other at most.
            max_share: of the last `window` steps at most.
            window: steps.

        Raises:
            ValueError: a limit makes no sense.
        """
        if max_in_a_row < 0 or window < 1 or not 0 <= max_share <= 1:
            raise ValueError(
                f"max_in_a_row is {max_in_a_row}, max_share {max_share} and window {window}; the first "
                "must not be negative, the second between 0 and 1, the third positive"
            )
        self.max_in_a_row, self.max_share, self.window = max_in_a_row, max_share, window
        self.in_a_row, self.total = 0, 0
        self._recent: list[int] = []  # steps within the window that were left out

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """See `StepGuard.judge`.

        Raises:
            TooManyNonFiniteError: says how many, since when, and what to look at.
        """
        numbers = {"loss": loss, "gradient norm": grad_norm}
        bad = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
        self._recent = [known for known in self._recent if known > step - self.window]
        if not bad:
            self.in_a_row = 0
            return Verdict()
        self.in_a_row += 1
        self.total += 1
        self._recent.append(step)
        reason = " and ".join(bad)
        if self.in_a_row > self.max_in_a_row:
            first = self._recent[-min(self.in_a_row, len(self._recent))]
            raise self._error(
                step, reason, f"{self.in_a_row} steps in a row, since step {first}", "max_in_a_row"
            )
        if len(self._recent) > max(self.max_share * self.window, self.max_in_a_row):
            raise self._error(
                step,
                reason,
                f"{len(self._recent)} of the last {self.window} steps, since step {self._recent[0]}",
                "max_share",
            )
        return Verdict(apply=False, reason=reason)

    def state_dict(self) -> dict[str, Any]:
        """See `StepGuard.state_dict`."""
        return {"in_a_row": self.in_a_row, "total": self.total, "recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `StepGuard.load_state_dict`."""
        self.in_a_row, self.total = state["in_a_row"], state["total"]
        self._recent = list(state["recent"])

    def _error(self, step: int, reason: str, how_many: str, limit: str) -> TooManyNonFiniteError:
        return TooManyNonFiniteError(
            f"step {step}: {reason}; so it was in {how_many}, more than {limit} allows "
            f"({getattr(self, limit)}). None of them changed the weights. The run's incidents folder "
            "names their samples and gradient norms by component. One component points to "
            "its learning rate or precision, the same samples to the data, all steps since a resume to "
            "the checkpoint."
        )


class SpikeGuard:
    """Acts on a loss, or a gradient norm, far above those of the last steps.

    Far is `threshold` standard deviations above the median, with the deviation estimated from the median
    absolute deviation, so that spikes hardly change the measure. All finite values enter the window, so
    that a level that lasts is no spike any more after half a window. What is not finite is ignored here.
    """

    def __init__(
        self,
        action: SpikeAction,
        loss_threshold: float | None = 10.0,
        grad_norm_threshold: float | None = None,
        window: int = 200,
        warm_up: int = 100,
    ) -> None:
        """Keep the settings.

        Args:
            action: what to do.
            loss_threshold: of the loss, in standard deviations; None: it is not watched.
            grad_norm_threshold: likewise.
            window: steps to compare with.
            warm_up: finite steps at the beginning that are only watched.

        Raises:
            ValueError: nothing is watched, or a number makes no sense.
        """
        self.thresholds = {"loss": loss_threshold, "grad_norm": grad_norm_threshold}
        given = [value for value in self.thresholds.values() if value is not None]
        if not given or min(given) <= 0:
            raise ValueError(
                f"loss_threshold is {loss_threshold} and grad_norm_threshold {grad_norm_threshold}; at "
                "least one must be given, and they must be positive"
            )
        if window < 8 or warm_up < 8:
            raise ValueError(f"window is {window} and warm_up {warm_up}; 8 steps at least")
        self.action, self.window, self.warm_up = action, window, warm_up
        self.total, self.num_seen = 0, 0
        self._values = {name: deque[float](maxlen=window) for name in self.thresholds}

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """See `StepGuard.judge`."""
        numbers = {"loss": loss, "grad_norm": grad_norm}
        if not all(math.isfinite(value) for value in numbers.values()):
            return self.action.otherwise(step)
        reasons = []
        for name, value in numbers.items():
            if self.num_seen >= self.warm_up and (reason := self._far(name, value)):
                reasons.append(reason)
            self._values[name].append(value)
        self.num_seen += 1
        if not reasons:
            return self.action.otherwise(step)
        self.total += 1
        return self.action.on_spike(step, " and ".join(reasons))

    def state_dict(self) -> dict[str, Any]:
        """See `StepGuard.state_dict`."""
        return {
            "total": self.total,
            "num_seen": self.num_seen,
            "values": {name: list(values) for name, values in self._values.items()},
            "action": self.action.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `StepGuard.load_state_dict`."""
        self.total, self.num_seen = state["total"], state["num_seen"]
        for name, values in state["values"].items():
            self._values[name] = deque(values, maxlen=self.window)
        self.action.load_state_dict(state["action"])

    def _far(self, name: str, value: float) -> str | None:
        threshold = self.thresholds[name]
        if threshold is None:
            return None
        values = self._values[name]
        median = statistics.median(values)
        deviation = statistics.median(abs(each - median) for each in values)
        sigma = max(_MAD_TO_SIGMA * deviation, _LEAST_SIGMA * abs(median), 1e-12)
        score = (value - median) / sigma
        if score <= threshold:
            return None
        return f"{name} {value:.4g} is {score:.1f} deviations above its median {median:.4g}"


class Guards:
    """Several guards as one: a step is applied if all agree, at the product of their rates.

    Args:
        guards: by name. Their states are kept under it, so that a resumed run may have others.
    """

    def __init__(self, guards: Mapping[str, StepGuard | None]) -> None:
        self.guards = {name: guard for name, guard in guards.items() if guard is not None}

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """See `StepGuard.judge`; every guard sees every step."""
        return _combined([guard.judge(step, loss, grad_norm) for guard in self.guards.values()])

    def state_dict(self) -> dict[str, Any]:
        """See `StepGuard.state_dict`."""
        return {name: guard.state_dict() for name, guard in self.guards.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `StepGuard.load_state_dict`; a guard without a state begins anew."""
        for name, guard in self.guards.items():
            if name in state:
                guard.load_state_dict(state[name])
            else:
                logger.warning("the checkpoint has no state of guard %s; it begins anew", name)


def _combined(verdicts: Sequence[Verdict]) -> Verdict:
    reasons = [verdict.reason for verdict in verdicts if verdict.reason is not None]
    returns = [verdict.roll_back for verdict in verdicts if verdict.roll_back is not None]
    return Verdict(
        apply=all(verdict.apply for verdict in verdicts),
        reason="; ".join(reasons) or None,
        rate=math.prod(verdict.rate for verdict in verdicts),
        roll_back=max(returns, default=None),
    )
