"""VQA accuracy: agreement with ten people."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

from vlmkit.evaluation.extract.short_answer import whole_text
from vlmkit.evaluation.metrics.base import ScoredMetric

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(_COUNTED.split())}
_CONTRACTED = (
    "ain't aren't can't couldn't could've couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll let's ma'am mightn't "
    "mightn't've might've mustn't must've needn't o'clock oughtn't shan't she'd've should've "
    "shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've "
    "you'd you'd've you'll you're you've"
)


def _without_apostrophes(word: str) -> list[str]:
    """All ways to leave out apostrophes of a word, at least one."""
    places = [i for i, c in enumerate(word) if c == "'"]
    left_out = chain.from_iterable(combinations(places, n) for n in range(1, len(places) + 1))
    return ["".join(c for i, c in enumerate(word) if i not in out) for out in left_out]


_CONTRACTIONS = {
    short: word for word in _CONTRACTED.split() for short in _without_apostrophes(word)
}


def vqa_normal(answer: str) -> str:
    """An answer as VQA compares it: punctuation, articles, number words and contractions settled.

    Source: the rules of Antol et al. 2015, as the official evaluation applies them.
    """
    answer = " ".join(answer.strip().split())
    has_comma = _DIGIT_COMMA.search(answer) is not None
    out = answer
    for sign in _PUNCTUATION:
        alone = f"{sign} " in answer or f" {sign}" in answer
        out = out.replace(sign, "" if alone or has_comma else " ")
    out = _PERIOD.sub("", out)
    words = (_NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


class VqaAccuracy(ScoredMetric):
    """VQAv2, TextVQA: mean over all but one of the people of `min(1, matches / 3)`.

    Targets are the answers of all people. Both sides are always normalised; the official code leaves
    that out where all people agree word for word.

    Args:
        extract: the part of the text that is the answer.
    """

    def __init__(self, extract: Callable[[str], str | None] = whole_text, **options: Any) -> None:
        super().__init__(**options)
        self.extract = extract

    def score(self, text: str, target: Sequence[str]) -> list[float] | None:
        """See the class."""
        if isinstance(target, str) or not target:
            raise ValueError(
                f"VQA accuracy compares with the answers of several people, not {target!r}"
            )
        said = self.extract(text)
        if said is None:
            return None
        said = vqa_normal(said)
        equal = [vqa_normal(answer) == said for answer in target]
        if len(equal) == 1:
            return [float(equal[0])]
        others = (sum(equal) - own for own in equal)
        return [sum(min(1.0, matches / 3) for matches in others) / len(equal)]
