"""Words, numbers and yes or no out of an answer."""

from __future__ import annotations

import math
import re
import unicodedata

_STATED = re.compile(
    r"(?:\bthe\s+)?(?:\b(?:final|correct|best)\s+)?\banswer\s*(?:\bis\b\s*:?|:|=|\bwould\s+be\b)\s*"
    r"|答案\s*(?:是|为|：|:)\s*",
    re.IGNORECASE,
)
_BRACES = re.compile(r"\\((?:boxed|fbox)\s*\{)|\\.|[{}]")
_AROUND = " \t\r\n*_`\"'“”‘’$"
_NUMBER = re.compile(
    r"(?<![\w.,])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?"
    r"|(?<![\w.])[-+−]?\.\d+"
)
_YES_NO = {"yes": "yes", "no": "no", "是": "yes", "是的": "yes", "否": "no", "不是": "no"}
_WORD = r"[\W_]*(yes|no|是的|不是|是|否)"
_UNKNOWN = r"(?!\s+(?:idea|answer|clue|information|image|picture|way|one\s+knows)\b)"
_LEADING = re.compile(rf"{_WORD}\b{_UNKNOWN}", re.IGNORECASE)
_ALONE = re.compile(rf"{_WORD}[\W_]*$", re.IGNORECASE)
_BOTH = re.compile(r"[\W_]*(?:yes|no)\s*(?:and|or|/|\||&|,)\s*(?:yes|no)\b", re.IGNORECASE)
_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_WORDS = {word: number for number, word in enumerate(_COUNTED.split())}
_COUNT_WORDS = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)


def whole_text(text: str) -> str | None:
    """All of it, as prompts that ask for a single word or phrase want."""
    return text.strip() or None


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` that is closed."""
    open_at: list[int] = []  # where the inside of each open box begins; -1 for other braces
    last, found = -1, None
    for match in _BRACES.finditer(text):
        if match[0] == "}" and open_at:
            start = open_at.pop()
            if start > last:
                last, found = start, text[start : match.start()].strip()
        elif match[1] or match[0] == "{":
            open_at.append(match.end() if match[1] else -1)
    return found or None


def stated(text: str) -> str | None:
    r"""What an answer states: the last `\boxed{}`, or what follows the last "the answer is"."""
    inside = boxed(text)
    if inside:
        return inside
    ends = [match.end() for match in _STATED.finditer(text)]
    if not ends:
        return None
    line = text[ends[-1] :].strip().partition("\n")[0]
    return line.strip(_AROUND).removesuffix(".").strip(_AROUND) or None


def stated_or_whole(text: str) -> str | None:
    """What an answer states, or all of it where it states nothing."""
    return stated(text) or whole_text(text)


def yes_or_no(text: str) -> str | None:
    """`yes` or `no`: what the answer states, its first word, or its last line.

    "Yes and no" and "I do not know" are parse failures, and so is a "no" in mid-sentence, which may
    be "no doubt".
    """
    last_line = text.rstrip().rpartition("\n")[2]
    for part, pattern in ((stated(text), _LEADING), (text, _LEADING), (last_line, _ALONE)):
        match = pattern.match(part) if part else None
        if match:
            return None if _BOTH.match(part or "") else _YES_NO[match[1].lower()]
    return None


def count(text: str) -> int | None:
    """A whole number of things, in digits of any script or as an English word up to twenty.

    The stated answer counts first. Elsewhere there must be one number only: "2 or 3" is a parse
    failure, and so is "2.5".
    """
    for part in (stated(text), text):
        if part is None:
            continue
        found = {_number(m[0]) for m in _NUMBER.finditer(normal_digits(part))}
        found |= {float(_WORDS[m[0].lower()]) for m in _COUNT_WORDS.finditer(part)}
        if len(found) == 1 and (value := found.pop()).is_integer():
            return int(value)
        if found:
            return None
    return None


def number(text: str) -> float | None:
    """The number of a stated answer, or the last one in the text; `,` groups thousands."""
    for part in (stated(text), text):
        found = _NUMBER.findall(normal_digits(part)) if part else []
        if found:
            value = _number(found[-1])
            return value if math.isfinite(value) else None
    return None


def normal_digits(text: str) -> str:
    """Full-width and other compatible forms as plain ones, digits of all scripts as 0 to 9."""
    text = unicodedata.normalize("NFKC", text)
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))
