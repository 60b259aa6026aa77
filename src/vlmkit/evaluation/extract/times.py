"""The stretch of a video that an answer names, in seconds or as clock times."""

from __future__ import annotations

import re

from vlmkit.data.geometry.shapes import TimeSpan
from vlmkit.errors import DataError
from vlmkit.evaluation.extract.short_answer import normal_digits

_TIME = r"(?:\d{1,3}:)?\d{1,4}:\d{2}(?:\.\d+)?|\d{1,7}(?:\.\d+)?"
_UNIT = r"s(?:ec(?:ond)?s?)?\b|秒"
_KEYED = re.compile(
    rf"""["']?(?:start|begin)(?:_?time)?["']?\s*[:=]\s*["']?(?P<start>{_TIME})\s*(?:{_UNIT})?["']?"""
    rf"""[^:=\d]{{0,40}}["']?(?:end|stop)(?:_?time)?["']?\s*[:=]\s*["']?(?P<end>{_TIME})(?![\d:.]*\d)""",
    re.IGNORECASE,
)
_PAIR = re.compile(
    rf"(?<![\w.:,-])(?P<start>{_TIME})\s*(?P<unit1>{_UNIT})?[\"']?\s*"
    rf"(?:-|–|—|~|,|to\b|until\b|till\b|and\b|through\b|至|到)\s*[\"']?"
    rf"(?P<end>{_TIME})(?![\d:]*\d)\s*(?P<unit2>{_UNIT})?",
    re.IGNORECASE,
)


def time_span(text: str) -> TimeSpan | None:
    """The first stretch: `start` and `end` of JSON, else two times joined by "to", "-" and the like.

    Times are seconds (`12.5`) or clocks (`01:12.5`, `1:01:12`). Pairs with clocks or the word seconds
    come first; a bare pair of numbers counts where it is the only one. A stretch that ends before it
    begins is None.
    """
    text = normal_digits(text)
    pairs = list(_PAIR.finditer(text))
    timed = [m for m in pairs if m["unit1"] or m["unit2"] or ":" in m["start"] + m["end"]]
    candidates = timed or (pairs if len(pairs) == 1 else [])
    match = _KEYED.search(text) or next(iter(candidates), None)
    if match is None:
        return None
    try:
        return TimeSpan(seconds_of(match["start"]), seconds_of(match["end"]))
    except DataError:
        return None


def seconds_of(text: str) -> float:
    """A number of seconds, `mm:ss` or `hh:mm:ss` as seconds."""
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total
