"""Numbers that are estimated: how near an answer comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmkit.evaluation.extract.short_answer import number
from vlmkit.evaluation.metrics.base import ScoredMetric

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())


class MeanRelativeAccuracy(ScoredMetric):
    """VSI-Bench: share of thresholds t for which the relative error is at most 1 - t; targets are numbers.

    Source: Yang et al. 2024, "Thinking in Space", section 3.

    Args:
        thresholds: 0.5, 0.55, ..., 0.95.
        extract: the number of an answer.
    """

    def __init__(
        self,
        thresholds: Sequence[float] = THRESHOLDS,
        extract: Callable[[str], float | None] = number,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.thresholds, self.extract = tuple(thresholds), extract

    def score(self, text: str, target: float) -> list[float] | None:
        """See the class."""
        if not target:
            raise ValueError("a relative error needs a truth other than 0")
        found = self.extract(text)
        if found is None:
            return None
        error = abs(found - target) / abs(target)
        # a hair of room: 1 - 0.9 is less than 0.1
        return [float(np.mean([error <= 1 - t + 1e-9 for t in self.thresholds]))]
