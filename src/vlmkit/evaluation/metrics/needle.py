"""Needle in a haystack: accuracy by length of the context and depth of the needle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vlmkit.evaluation.metrics.base import ScoredMetric, Table, Values, ratio
from vlmkit.evaluation.metrics.short_answer import Containment


class Needle(NamedTuple):
    """A question about a needle.

    Attributes:
        answer: the target of the metric that judges the answer.
        length: of the context, one of the grid's.
        depth: of the needle, one of the grid's.
        chance: of guessing blindly.
    """

    answer: Any
    length: float
    depth: float
    chance: float = 0.0


class Grid(NamedTuple):
    """Accuracy by cell.

    Attributes:
        lengths: of rows.
        depths: of columns.
        accuracy: (lengths, depths), NaN where nothing was asked.
        counts: (lengths, depths) samples.
    """

    lengths: tuple[float, ...]
    depths: tuple[float, ...]
    accuracy: np.ndarray
    counts: np.ndarray


class NeedleGrid(ScoredMetric):
    """Mean over all samples, and over each length (`length=…`); `grid` has the cells. Targets are `Needle`s.

    Args:
        lengths: of contexts, in any unit.
        depths: of needles, usually 0 to 1.
        metric: judges an answer; its first column counts.
    """

    columns = ("score", "length", "depth", "chance")

    def __init__(
        self,
        lengths: Sequence[float],
        depths: Sequence[float],
        metric: ScoredMetric | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lengths = tuple(lengths)
        self.depths = tuple(depths)
        self.metric = metric or Containment()

    def score(self, text: str, target: Needle) -> list[float] | None:
        """See the class."""
        cell = self.failure(target)[1:]
        row = self.metric.score(text, target.answer)
        return None if row is None else [row[0], *cell]

    def failure(self, target: Needle) -> list[float]:
        """0 in its cell."""
        if target.length not in self.lengths or target.depth not in self.depths:
            raise ValueError(
                f"length {target.length} at depth {target.depth} is no cell of lengths "
                f"{list(self.lengths)} and depths {list(self.depths)}"
            )
        cell = self.lengths.index(target.length), self.depths.index(target.depth)
        return [0.0, *map(float, cell), target.chance]

    def sums(self, table: Table) -> np.ndarray:
        """Score and count, then both for each length."""
        scores, lengths = table.rows[:, 0], table.rows[:, 1]
        at = (lengths[:, None] == np.arange(len(self.lengths))).astype(float)
        columns = np.concatenate([scores[:, None], scores[:, None] * at, at], axis=1)
        return super().sums(table._replace(rows=columns))

    def values(self, sums: np.ndarray) -> Values:
        """`accuracy`, then one value per length."""
        count = len(self.lengths)
        by_length = ratio(sums[..., 1 : count + 1], sums[..., count + 1 : -1])
        found = {"accuracy": ratio(sums[..., 0], sums[..., -1])}
        names = (f"length={length:g}" for length in self.lengths)
        return found | {name: by_length[..., i] for i, name in enumerate(names)}

    def chance(self, table: Table) -> float:
        """Mean over samples."""
        return float(table.rows[:, 3].mean())

    def grid(self) -> Grid:
        """Accuracy and count by cell. Call it on every rank, as `compute`."""
        rows = self.synced_table().rows
        shape = len(self.lengths), len(self.depths)
        cell = np.ravel_multi_index(rows[:, 1:3].astype(int).T, shape)
        counts = np.bincount(cell, minlength=shape[0] * shape[1]).astype(float)
        right = np.bincount(cell, weights=rows[:, 0], minlength=shape[0] * shape[1])
        return Grid(
            self.lengths, self.depths, ratio(right, counts).reshape(shape), counts.reshape(shape)
        )
