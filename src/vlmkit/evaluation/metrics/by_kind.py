"""One score for questions of several kinds, and averages in which parts of a benchmark count alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vlmkit.evaluation.metrics.base import ScoredMetric, Table, Values, ratio, sample_key, sum_by


class Kinded(NamedTuple):
    """A target of one of several kinds.

    Attributes:
        kind: names the metric.
        target: what that metric compares with.
        part: of the benchmark; parts count alike in the average.
    """

    kind: str
    target: Any
    part: str = ""


class ByKind(ScoredMetric):
    """The first number of each question's own metric; targets are `Kinded`.

    `average` is the mean over parts, each the mean over its questions; `score` is the mean over questions.
    Without parts the two are equal.

    Args:
        kinds: metrics by kind, each of which scores single samples.
    """

    columns = ("score", "part")

    def __init__(self, kinds: Mapping[str, ScoredMetric], **options: Any) -> None:
        super().__init__(**options)
        self.names = tuple(kinds)
        for name, metric in kinds.items():
            self.add_module(f"of_{name}", metric)

    def score(self, text: str, target: Kinded) -> list[float] | None:
        """See the class."""
        row = self._of(target).score(text, target.target)
        return None if row is None else [float(row[0]), _part(target)]

    def failure(self, target: Kinded) -> list[float]:
        """The failure of the question's own metric."""
        return [float(self._of(target).failure(target.target)[0]), _part(target)]

    def sums(self, table: Table) -> np.ndarray:
        """Per cluster, for each part: sum of scores, number of questions."""
        parts = np.unique(table.rows[:, 1])
        columns = []
        for part in parts:
            inside = table.rows[:, 1] == part
            counted = np.column_stack([table.rows[:, 0] * inside, inside.astype(float)])
            columns.append(sum_by(table.clusters, counted))
        return np.concatenate(columns, axis=1) if columns else np.zeros((0, 2))

    def values(self, sums: np.ndarray) -> Values:
        """`average`, then `score`."""
        scores, counts = sums[..., 0::2], sums[..., 1::2]
        means = ratio(scores, counts)
        filled = (counts > 0).sum(-1)  # a resample may miss a small part
        return {
            "average": ratio(np.nansum(means, axis=-1), filled),
            "score": ratio(scores.sum(-1), counts.sum(-1)),
        }

    def _of(self, target: Kinded) -> ScoredMetric:
        if target.kind not in self.names:
            raise ValueError(f"there is no metric for {target.kind!r}, only for {list(self.names)}")
        metric = getattr(self, f"of_{target.kind}")
        assert isinstance(metric, ScoredMetric)
        return metric


def _part(target: Kinded) -> float:
    return float(sample_key(target.part) % 2**53)
