"""The answer word for word."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from vlmkit.evaluation.metrics.base import ScoredMetric


class ExactMatch(ScoredMetric):
    """Share of answers equal to the target, or to one of several; NFKC, case and white space aside.

    Targets are a string or a list of strings. Every text is an answer, so only an empty one counts as a
    parse failure.
    """

    def score(self, text: str, target: Any) -> Sequence[float] | None:
        """See `ScoredMetric.score`."""
        right = [target] if isinstance(target, str) else list(target)
        if not right:
            raise ValueError("the target is an empty list of answers")
        return [float(normalised(text) in {normalised(str(one)) for one in right})]


def normalised(text: str) -> str:
    """Without what does not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
