"""Text that was read off pictures: character and word error rates, normalised edit distance."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from vlmkit.evaluation.extract.short_answer import whole_text
from vlmkit.evaluation.extras import eval_package
from vlmkit.evaluation.metrics.base import ScoredMetric, Table, Values, ratio


def edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein distance of two sequences."""
    return eval_package("rapidfuzz.distance.Levenshtein", "edit distance").distance(a, b)


def compatible(text: str) -> str:
    """NFKC, so that full-width and half-width forms are equal, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


class CharErrorRate(ScoredMetric):
    """Edits of all texts over the characters of all truths (CER); an empty answer misses every one.

    Targets are texts. A sample's own score is its own rate, NaN where the truth is empty.

    Args:
        normalize: what both texts go through first.
        extract: the part of an answer that is the text read.
    """

    columns: ClassVar[tuple[str, ...]] = ("edits", "length")
    higher_is_better = False

    def __init__(
        self,
        normalize: Callable[[str], str] = compatible,
        extract: Callable[[str], str | None] = whole_text,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.normalize = normalize
        self.extract = extract

    def units(self, text: str) -> Sequence[str]:
        """What is counted: characters."""
        return text

    def score(self, text: str, target: str) -> list[float] | None:
        """See the class."""
        said = self.extract(text)
        if said is None:
            return None
        truth = self.units(self.normalize(target))
        return [float(edits(self.units(self.normalize(said)), truth)), float(len(truth))]

    def failure(self, target: str) -> list[float]:
        """All of the truth is missing."""
        length = float(len(self.units(self.normalize(target))))
        return [length, length]

    def values(self, sums: np.ndarray) -> Values:
        """The rate over all texts."""
        return {"error_rate": ratio(sums[..., 0], sums[..., 1])}

    def sample_scores(self, table: Table) -> np.ndarray:
        """The rate of each sample."""
        return ratio(table.rows[:, 0], table.rows[:, 1])


class WordErrorRate(CharErrorRate):
    """Edits of words over the words of all truths (WER); words stand between spaces."""

    def units(self, text: str) -> Sequence[str]:
        """Words."""
        return text.split()


class NormalizedEditDistance(CharErrorRate):
    """Mean over samples of edits over the length of the longer text: 0 is equal, 1 has nothing in common."""

    columns = ("distance",)

    def score(self, text: str, target: str) -> list[float] | None:
        """See the class."""
        said = self.extract(text)
        return None if said is None else [self.distance(said, target)]

    def distance(self, said: str, truth: str) -> float:
        """0 to 1."""
        a, b = self.units(self.normalize(said)), self.units(self.normalize(truth))
        return edits(a, b) / max(len(a), len(b), 1)

    def failure(self, target: str) -> list[float]:
        """Nothing in common."""
        return [1.0]

    def values(self, sums: np.ndarray) -> Values:
        """The mean."""
        return {"distance": ratio(sums[..., 0], sums[..., 1])}

    def sample_scores(self, table: Table) -> np.ndarray:
        """The distance of each sample."""
        return table.rows[:, 0]
