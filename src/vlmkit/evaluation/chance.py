"""What a score is worth: the score of the best answer that never looks."""

from __future__ import annotations

from collections import Counter

from vlmkit.data.order.mixture import Source


def chance_level(source: Source) -> float:
    """Exact match of always giving the most frequent answer.

    Args:
        source: conversations that end with an answer.

    Returns:
        Share of the source that this one answer gets right, in 0..1.
    """
    answers = Counter(source[i].answer for i in range(len(source)))
    return max(answers.values()) / answers.total()
