"""Answers that are mostly mathematics and sometimes words."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.errors import UserError
from vlmkit.evaluation.extract.short_answer import stated_or_whole
from vlmkit.evaluation.metrics.exact_match import normalised
from vlmkit.evaluation.metrics.maths import MathAccuracy
from vlmkit.evaluation.metrics.short_answer import answers_of


class MathOrText(MathAccuracy):
    """`MathAccuracy`, or equality of words where a truth holds no expression, such as a name.

    Targets are one answer or several.
    """

    def score(self, text: str, target: str | Sequence[str]) -> list[float] | None:
        """See the class."""
        try:
            return super().score(text, target)
        except UserError:  # math-verify is missing
            raise
        except ValueError:  # it reads no expression in the truth
            said = stated_or_whole(text)
            if said is None:
                return None
            return [float(normalised(said) in map(normalised, answers_of(target)))]
