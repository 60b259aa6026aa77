"""Short answers in words or numbers: ANLS, relaxed accuracy, exact match, containment, MMMU's rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from vlmkit.evaluation.extract.short_answer import normal_digits, stated_or_whole, whole_text
from vlmkit.evaluation.extras import eval_package
from vlmkit.evaluation.metrics.base import ScoredMetric

Extractor = Callable[[str], str | None]


def answers_of(target: str | Sequence[str]) -> list[str]:
    """A target that is one answer, or several of which any is right, as a list.

    Raises:
        ValueError: there is none.
    """
    answers = [target] if isinstance(target, str) else [str(answer) for answer in target]
    if not answers:
        raise ValueError("a sample needs at least one right answer")
    return answers


class ShortAnswer(ScoredMetric):
    """The best score over a sample's right answers; targets are an answer or several.

    Args:
        extract: the part of the text that is the answer.
    """

    def __init__(self, extract: Extractor = whole_text, **options: Any) -> None:
        super().__init__(**options)
        self.extract = extract

    def score(self, text: str, target: str | Sequence[str]) -> list[float] | None:
        """See the class."""
        answers = answers_of(target)
        said = self.extract(text)
        return None if said is None else [max(self.credit(said, answer) for answer in answers)]

    def credit(self, said: str, answer: str) -> float:
        """0 to 1: 1 where they are equal."""
        raise NotImplementedError


class StatedMatch(ShortAnswer):
    """What the answer states is the truth, but for case, white space, Unicode forms and a full stop."""

    def __init__(self, extract: Extractor = stated_or_whole, **options: Any) -> None:
        super().__init__(extract, **options)

    def credit(self, said: str, answer: str) -> float:
        """See the class."""
        return float(_folded(said) == _folded(answer))


class ANLS(ShortAnswer):
    """Average normalised Levenshtein similarity (Biten et al. 2019; DocVQA, InfographicVQA).

    `1 - distance / longer length` of lower-cased texts with single spaces; 0 where the normalised
    distance is not below the threshold. Public harnesses differ: see `HarnessANLS`.

    Args:
        extract: the part of the text that is the answer.
        threshold: of the normalised distance.
    """

    def __init__(
        self, extract: Extractor = whole_text, threshold: float = 0.5, **options: Any
    ) -> None:
        super().__init__(extract, **options)
        self.threshold = threshold

    def credit(self, said: str, answer: str) -> float:
        """See the class."""
        distance = self.distance(said, answer)
        return 1 - distance if distance < self.threshold else 0.0

    def distance(self, said: str, answer: str) -> float:
        """Edits over the length of the longer normalised text."""
        a, b = _spaced(said), _spaced(answer)
        return _levenshtein(a, b) / max(len(a), len(b), 1)


class HarnessANLS(ANLS):
    """ANLS as lmms-eval and VLMEvalKit compute it, for comparison with their numbers.

    Edits of the normalised texts over the length of the texts as written, white space included; and a
    distance of exactly the threshold still counts.
    """

    def credit(self, said: str, answer: str) -> float:
        """See the class."""
        similarity = 1 - self.distance(said, answer)
        return similarity if similarity >= self.threshold else 0.0

    def distance(self, said: str, answer: str) -> float:
        """See the class."""
        longer = max(len(said.upper()), len(answer.upper()))
        return _levenshtein(_spaced(said), _spaced(answer)) / longer if longer else 0.0


class RelaxedAccuracy(ShortAnswer):
    """ChartQA: numbers within a share of the truth, anything else equal but for case.

    The public rule to the letter (Masry et al. 2022; Methani et al. 2020): `%` divides by 100, and a
    truth of 0 is compared as text. `LenientRelaxedAccuracy` mends both.

    Args:
        extract: the part of the text that is the answer.
        tolerance: largest relative error.
    """

    def __init__(
        self, extract: Extractor = whole_text, tolerance: float = 0.05, **options: Any
    ) -> None:
        super().__init__(extract, **options)
        self.tolerance = tolerance

    def credit(self, said: str, answer: str) -> float:
        """See the class."""
        value, truth = _float(said), _float(answer)
        if value is not None and truth:
            return float(self.near(value, truth))
        return float(said.lower() == answer.lower())

    def near(self, value: float, truth: float) -> bool:
        """Within the tolerance; never for what is no finite number."""
        return abs(value - truth) <= self.tolerance * abs(truth) < float("inf")


class LenientRelaxedAccuracy(RelaxedAccuracy):
    """Relaxed accuracy that reads "1,200", "$5" and "٥" as numbers and compares 0 as one.

    Where only one of the two has a `%`, "45%" and "45" are near each other too.
    """

    def __init__(
        self, extract: Extractor = stated_or_whole, tolerance: float = 0.05, **options: Any
    ) -> None:
        super().__init__(extract, tolerance, **options)

    def credit(self, said: str, answer: str) -> float:
        """See the class."""
        value, truth = _loose_float(said), _loose_float(answer)
        if value is None or truth is None:
            return float(_folded(said) == _folded(answer))
        percent = said.rstrip(" .").endswith("%"), answer.rstrip(" .").endswith("%")
        scales = (1.0,) if percent[0] == percent[1] else (1.0, 100.0 if percent[0] else 0.01)
        return float(any(self.near(value * scale, truth) for scale in scales))


class Containment(ShortAnswer):
    """OCRBench: 1 where a right answer stands in the text.

    Lower case without line breaks; `without_spaces` is for handwritten mathematical expressions, where
    case stays and white space goes. Source: Liu et al. 2023, OCRBench.

    Args:
        extract: the part of the text that is the answer.
        without_spaces: compare as expressions.
    """

    def __init__(
        self, extract: Extractor = whole_text, without_spaces: bool = False, **options: Any
    ) -> None:
        super().__init__(extract, **options)
        self.without_spaces = without_spaces

    def credit(self, said: str, answer: str) -> float:
        """See the class."""
        said, answer = said.strip().replace("\n", " "), answer.strip().replace("\n", " ")
        if self.without_spaces:
            said, answer = said.replace(" ", ""), answer.replace(" ", "")
        else:
            said, answer = said.lower(), answer.lower()
        return float(bool(answer) and answer in said)


class MmmuOpen(ShortAnswer):
    """MMMU's rule for open questions: a right answer is among the numbers or in the phrases of the text.

    A generous rule, kept since published numbers use it: every number of the key phrases counts, so
    that a text with many numbers is right more often. Source: Yue et al. 2023 and its evaluation code.
    """

    def score(self, text: str, target: str | Sequence[str]) -> list[float] | None:
        """See the class."""
        right = [form for answer in answers_of(target) for form in _mmmu_forms(answer)]
        said = _mmmu_candidates(text)
        return [float(any(_mmmu_equal(candidate, right) for candidate in said))]


_SIGNS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NOT_SIMPLE = r"(?![eE][+-]?\d+)(?![,\d])"
_MMMU_NUMBERS = (  # a run of digits is tried from its first one only, or long runs would take for ever
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"(?:-|(?<!\d))\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(rf"(?:(?:-|(?<!\d))(?:\d+\.\d+|\d+\b)|-?\.\d+){_NOT_SIMPLE}"),
)


def _mmmu_candidates(text: str) -> list[str | float]:
    """Key phrases of an answer and the numbers in them, as they are compared."""
    lines = text.strip().strip(".").lower().split("\n")
    phrases = []
    for place, line in enumerate(lines):
        signs = (*_SIGNS, "=") if place == len(lines) - 1 else _SIGNS
        tail = ""
        for sign in signs:
            after = line.rpartition(sign)[2].strip()
            if sign in line and (not tail or len(after) < len(tail)):
                tail = after
        if tail and tail not in set(":,.!?;'"):
            phrases.append(tail)
    phrases = phrases or [text.strip().strip(".").lower()]
    numbers = [
        n for phrase in phrases for pattern in _MMMU_NUMBERS for n in pattern.findall(phrase)
    ]
    return [form for said in (*phrases, *numbers) for form in _mmmu_forms(said)]


def _mmmu_forms(text: str) -> list[str | float]:
    """A number with two decimals, or lower case; one letter needs a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _mmmu_equal(said: str | float, right: list[str | float]) -> bool:
    if isinstance(said, float):
        return said in right
    return any(isinstance(answer, str) and answer and answer in said for answer in right)


def _levenshtein(a: str, b: str) -> int:
    return eval_package("rapidfuzz.distance.Levenshtein", "edit distance").distance(a, b)


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _folded(text: str) -> str:
    return " ".join(normal_digits(text).casefold().split()).strip().removesuffix(".")


def _float(text: str) -> float | None:
    try:
        if text.endswith("%"):
            return float(text.rstrip("%")) / 100
        return float(text)
    except ValueError:
        return None


_LOOSE = re.compile(
    r"[$€£¥]?\s*([-+]?[$€£¥]?\s*(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d+)?)"
    r"\s*(%?)\s*\.?"
)


def _loose_float(text: str) -> float | None:
    match = _LOOSE.fullmatch(normal_digits(text).replace("−", "-").strip())
    if not match:
        return None
    try:
        value = float(re.sub(r"[,$€£¥\s]", "", match[1]))
    except ValueError:
        return None
    return value / 100 if match[2] else value
