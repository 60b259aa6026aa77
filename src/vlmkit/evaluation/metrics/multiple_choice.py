"""Multiple choice: the share of questions whose right option was named. Nothing is guessed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlmkit.evaluation.extract.choice import ChoiceExtractor, letter_or_text
from vlmkit.evaluation.metrics.base import ScoredMetric, Table, Values, ratio, sum_by


class Choice(NamedTuple):
    """A multiple-choice question.

    Attributes:
        answer: the letter of the right option, or several of which any is right.
        options: text by letter; texts may be empty where they stand in the picture.
    """

    answer: str | Collection[str]
    options: Mapping[str, str]

    @classmethod
    def of(cls, answer: str | Collection[str], texts: Sequence[str]) -> Choice:
        """With the letters A, B, C, ... for the texts."""
        return cls(answer, {chr(ord("A") + i): text for i, text in enumerate(texts)})

    @property
    def answers(self) -> frozenset[str]:
        """Letters that are right."""
        return frozenset([self.answer] if isinstance(self.answer, str) else self.answer)


class MultipleChoice(ScoredMetric):
    """Accuracy; an answer that names no option, or two, is wrong and counts as a parse failure.

    Targets are `Choice`s.

    Args:
        extract: which option an answer names; part of what a result means.
    """

    columns = ("correct", "chance")

    def __init__(self, extract: ChoiceExtractor = letter_or_text, **options: Any) -> None:
        super().__init__(**options)
        self.extract = extract

    def score(self, text: str, target: Choice) -> list[float] | None:
        """See the class."""
        guess = self.failure(target)[1]
        letter = self.extract(text, target.options)
        return None if letter is None else [float(letter in target.answers), guess]

    def failure(self, target: Choice) -> list[float]:
        """Wrong; blind guessing has the chance of one option among all."""
        if not target.answers or not target.answers <= set(target.options):
            raise ValueError(
                f"the answer {sorted(target.answers)} is not among options {list(target.options)}"
            )
        return [0.0, len(target.answers) / len(target.options)]

    def chance(self, table: Table) -> float:
        """Mean over questions of the share of options that are right."""
        return float(table.rows[:, 1].mean())


class CircularChoice(MultipleChoice):
    """MMBench's CircularEval: a question counts where all rotations of its options are answered right.

    Each rotation is a sample with a key of its own; those of one question share a `group`.
    `single` is plain accuracy over rotations.

    Source: Liu et al. 2023, MMBench, section 4.
    """

    def sums(self, table: Table) -> np.ndarray:
        """Per question: all right, 1, right rotations, rotations."""
        per_question = sum_by(
            table.clusters, np.stack([table.rows[:, 0], np.ones(len(table.keys))], axis=1)
        )
        whole = (per_question[:, 0] == per_question[:, 1]).astype(float)
        return np.column_stack([whole, np.ones(len(whole)), per_question])

    def values(self, sums: np.ndarray) -> Values:
        """`circular`, then `single`."""
        return {
            "circular": ratio(sums[..., 0], sums[..., 1]),
            "single": ratio(sums[..., 2], sums[..., 3]),
        }

    def chance(self, table: Table) -> float:
        """Of guessing each rotation blindly and independently."""
        clusters = table.clusters
        logs = np.log(table.rows[:, 1])
        return (
            float(np.exp(sum_by(clusters, logs[:, None])[:, 0]).mean()) if len(logs) else math.nan
        )
