"""Several answers to each problem: pass@k, majority and consistency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmkit.evaluation.extract.short_answer import stated_or_whole
from vlmkit.evaluation.metrics.base import ScoredMetric, Table, Values, ratio, sample_key


class PassAtK(ScoredMetric):
    """`pass@k` (Chen et al. 2021, unbiased), `majority` and `consistency` over samples of each problem.

    Each sample has a key of its own, and those of one problem share a `group`; targets are those of
    `metric`. The majority answer is right by the share of the most frequent answers that are; samples
    whose answer cannot be read do not vote. `consistency` is the share of pairs of samples that give
    the same answer, an unreadable one being equal to none (NaN with one sample each).

    Args:
        metric: judges one sample; right is a score of 1.
        ks: of pass@k, none above the number of samples of any problem. The first is the headline.
        identify: what makes two answers the same.
    """

    columns = ("correct", "answer")

    def __init__(
        self,
        metric: ScoredMetric,
        ks: Sequence[int] = (1,),
        identify: Callable[[str], str | None] = stated_or_whole,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.metric = metric
        self.ks = tuple(ks)
        self.identify = identify

    def score(self, text: str, target: Any) -> list[float] | None:
        """See the class."""
        row = self.metric.score(text, target)
        said = self.identify(text)
        if row is None or said is None:
            return None
        identity = sample_key(" ".join(said.casefold().split())) % 2**53
        return [float(row[0] == 1), float(identity)]

    def failure(self, target: Any) -> list[float]:
        """Wrong, and no answer; raises what the metric raises for a bad target."""
        self.metric.failure(target)
        return [0.0, -1.0]

    def sums(self, table: Table) -> np.ndarray:
        """Per problem: pass@k for each k, majority, equal pairs, pairs, 1."""
        clusters = table.clusters
        order = np.argsort(clusters, kind="stable")
        ends = np.flatnonzero(np.diff(clusters[order])) + 1
        rows = [self._problem(part) for part in np.split(table.rows[order], ends) if len(part)]
        return np.array(rows).reshape(len(rows), len(self.ks) + 4)

    def values(self, sums: np.ndarray) -> Values:
        """See the class."""
        names = [*(f"pass@{k}" for k in self.ks), "majority"]
        found = {name: ratio(sums[..., i], sums[..., -1]) for i, name in enumerate(names)}
        return {**found, "consistency": ratio(sums[..., -3], sums[..., -2])}

    def _problem(self, rows: np.ndarray) -> list[float]:
        n, correct = len(rows), int(rows[:, 0].sum())
        if n < max(self.ks):
            raise ValueError(
                f"a problem has {n} samples, fewer than pass@{max(self.ks)} needs; sample more or "
                "lower ks. Samples of one problem share a group and differ in their keys"
            )
        passed = [pass_at_k(n, correct, k) for k in self.ks]
        votes = rows[rows[:, 1] >= 0]
        majority, agreeing = 0.0, 0
        if len(votes):
            _, inverse, counts = np.unique(votes[:, 1], return_inverse=True, return_counts=True)
            top = np.flatnonzero(counts == counts.max())
            majority = float(np.mean([votes[inverse == answer, 0].mean() for answer in top]))
            agreeing = int((counts * (counts - 1) // 2).sum())
        return [*passed, majority, float(agreeing), n * (n - 1) / 2, 1.0]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k samples is right, drawn without replacement from n of which `correct` are."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
