"""What guards say of a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to become of a step whose gradient is ready.

    Attributes:
        apply: whether the optimiser takes it. If not, weights, moments and step counters stay.
        reason: what is wrong with the step, for the log; None: nothing.
        rate: factor on the learning rates of this step.
        roll_back: put weights and moments of the k-th last checkpoint back, and go on with the data after
            this step; None: no.
    """

    apply: bool = True
    reason: str | None = None
    rate: float = 1.0
    roll_back: int | None = None
