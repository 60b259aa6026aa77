"""Answers in numbers and formulas: equal in value, however they are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlmkit.evaluation.extract.short_answer import boxed, normal_digits, stated
from vlmkit.evaluation.math_equality import MathEquality, Verdict
from vlmkit.evaluation.metrics.base import ScoredMetric
from vlmkit.evaluation.metrics.short_answer import answers_of

_OR = re.compile(r"\bor\b|或", re.IGNORECASE)
_PLAIN = re.compile(r"\$?\s*([-+]?\d+(?:\.\d+)?[eE][-+]?\d{1,3})\s*\$?\.?")


class MathAccuracy(ScoredMetric):
    r"""MathVista, MathVision, AIME: share of answers equal to the truth; targets are LaTeX or plain text.

    What counts is the last `\boxed{}`, else what "the answer is" states, else the last expression of
    the text. Alternatives ("1 or 2") are a parse failure, as are comparisons beyond the time limit and
    answers beyond `max_answer_chars`. Percentages are not turned into fractions.

    Args:
        equal: compares two expressions.
        max_answer_chars: of what is read symbolically.
    """

    def __init__(
        self, equal: MathEquality | None = None, max_answer_chars: int = 2000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.equal = equal or MathEquality()
        self.max_answer_chars = max_answer_chars

    def score(self, text: str, target: str | Sequence[str]) -> list[float] | None:
        """See the class."""
        said = math_answer(text, self.max_answer_chars)
        verdicts = []
        for answer in answers_of(target):
            verdict = self.equal(said or "none", _written_out(answer))
            if verdict is Verdict.BAD_TRUTH:
                raise ValueError(f"math-verify reads no expression in the truth {answer!r}")
            verdicts.append(verdict)
        if said is None or all(verdict is Verdict.UNREADABLE for verdict in verdicts):
            return None
        return [float(Verdict.EQUAL in verdicts)]


def math_answer(text: str, max_chars: int = 2000) -> str | None:
    """The part of an answer that holds its expression; None for alternatives and for too much of it."""
    text = normal_digits(text)
    inside = boxed(text)
    if inside is not None:
        return None if len(inside) > max_chars else _written_out(inside)
    said = stated(text) or text.strip().rpartition("\n")[2]
    if len(said) > max_chars or _OR.search(said):
        return None
    return _written_out(said)


def _written_out(answer: str) -> str:
    """`3e5`, which math-verify would read as 3, as LaTeX; a bare expression between dollars."""
    plain = _PLAIN.fullmatch(answer)
    if plain:
        mantissa, _, exponent = plain[1].lower().partition("e")
        return rf"${mantissa} \times 10^{{{int(exponent)}}}$"
    is_bare = "$" not in answer and ("\\" in answer or not re.search(r"[^\W\d_]{2}", answer))
    return f"${answer}$" if is_bare else answer
