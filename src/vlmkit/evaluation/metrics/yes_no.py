"""Yes-or-no questions about what is not there: POPE and HallusionBench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vlmkit.evaluation.extract.short_answer import yes_or_no
from vlmkit.evaluation.metrics.base import ScoredMetric, Table, Values, ratio, sample_key, sum_by

Extractor = Callable[[str], str | None]


class Pope(ScoredMetric):
    """POPE: `accuracy`, `precision`, `recall`, `f1` and `yes_rate`. Targets are "yes" or "no".

    An answer that is neither is wrong and no yes. Source: Li et al. 2023.

    Args:
        extract: gives "yes", "no" or None.
    """

    columns = ("correct", "says_yes", "is_yes", "both_yes")

    def __init__(self, extract: Extractor = yes_or_no, **options: Any) -> None:
        super().__init__(**options)
        self.extract = extract

    def score(self, text: str, target: str) -> list[float] | None:
        """See the class."""
        is_yes = self.failure(target)[2]
        said = self.extract(text)
        if said is None:
            return None
        says_yes = float(said == "yes")
        return [float(said == target), says_yes, is_yes, says_yes * is_yes]

    def failure(self, target: str) -> list[float]:
        """Wrong, and no yes."""
        return [0.0, 0.0, float(_checked(target) == "yes"), 0.0]

    def values(self, sums: np.ndarray) -> Values:
        """See the class."""
        correct, says, is_yes, both, n = np.moveaxis(sums, -1, 0)
        return {
            "accuracy": ratio(correct, n),
            "precision": ratio(both, says),
            "recall": ratio(both, is_yes),
            "f1": ratio(2 * both, says + is_yes),
            "yes_rate": ratio(says, n),
        }

    def chance(self, table: Table) -> float:
        """Of a coin."""
        return 0.5


class HallusionQuestion(NamedTuple):
    """A question of HallusionBench: what is right, and which figure and question of which set it is."""

    answer: str
    subcategory: str
    set_id: str
    figure_id: str
    question_id: str


class HallusionBench(ScoredMetric):
    """HallusionBench: `aacc` of answers, `facc` of figures, `qacc` of questions.

    Targets are `HallusionQuestion`s.
    A figure counts where all questions on it are answered right, a question where it is on all figures
    of its set. The headline is the mean of the three. The bootstrap draws sets. Source: Guan et al. 2023.

    Args:
        extract: gives "yes", "no" or None.
    """

    columns = ("correct", "figure", "question")

    def __init__(self, extract: Extractor = yes_or_no, **options: Any) -> None:
        super().__init__(**options)
        self.extract = extract

    def update(
        self,
        prediction: str,
        target: HallusionQuestion,
        key: int | str,
        group: int | str | None = None,
    ) -> None:
        """Add one sample; its group is always its set, since figures and questions lie within one."""
        super().update(prediction, target, key, group=f"{target.subcategory}/{target.set_id}")

    def score(self, text: str, target: HallusionQuestion) -> list[float] | None:
        """See the class."""
        row = self.failure(target)
        said = self.extract(text)
        return None if said is None else [float(said == target.answer), *row[1:]]

    def failure(self, target: HallusionQuestion) -> list[float]:
        """Wrong, with figure and question as numbers that a float64 holds."""
        _checked(target.answer)
        names = f"{target.subcategory}/{target.set_id}/"
        ids = (
            sample_key(names + part) for part in ("f" + target.figure_id, "q" + target.question_id)
        )
        return [0.0, *(float(number % 2**53) for number in ids)]

    def sums(self, table: Table) -> np.ndarray:
        """Per set: right and all answers, figures, questions."""
        counted = np.column_stack([table.rows[:, 0], np.ones(len(table.keys))])
        columns = [sum_by(table.clusters, counted)]
        for ids in table.rows.T[1:]:
            _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
            totals = sum_by(inverse, counted)
            whole = np.column_stack([totals[:, 0] == totals[:, 1], np.ones(len(totals))])
            columns.append(sum_by(table.clusters[first], whole.astype(float)))
        return np.concatenate(columns, axis=1)

    def values(self, sums: np.ndarray) -> Values:
        """`average`, `aacc`, `facc`, `qacc`."""
        parts = {
            name: ratio(sums[..., 2 * i], sums[..., 2 * i + 1])
            for i, name in enumerate(("aacc", "facc", "qacc"))
        }
        return {"average": np.mean(list(parts.values()), axis=0), **parts}


def _checked(answer: str) -> str:
    if answer not in ("yes", "no"):
        raise ValueError(f"the truth of a yes-or-no question is {answer!r}")
    return answer
