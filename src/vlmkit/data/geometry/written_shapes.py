"""Finds boxes and points in text, in the ways that datasets write them, well-formed or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

BARE = "[a, b, c, d]"
"""Form of four numbers in brackets without any key: perhaps no box at all."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FORMS = re.compile(
    rf"""
      ["'](?P<key>bbox_2d|bbox|box_2d|box|point_2d|point)["']\s*:\s*\[+(?P<keyed>[^\[\]]*)\]
    | (?:<box>|<\|box_start\|>)(?P<tagged>[^<]*)<
    | \bdata-bbox=["'](?P<html>[^"']*)["']
    | <!--\s*(?:Image|Table)\s*\((?P<markdown>[^()]*)\)
    | \[\s*(?P<bare>{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}})\s*\]
    """,
    re.VERBOSE,
)
_NAMES = {"tagged": "<box>", "html": "data-bbox", "markdown": "<!-- Image -->", "bare": BARE}
_NUMBERS = re.compile(_NUMBER)
_WORDS = re.compile(r"[^\W\d_]{2}|\b[^\W\d_]")  # a letter that belongs to no exponent


@dataclass(frozen=True)
class WrittenShape:
    """Coordinates as they stand in a text: two of a point, four of a box, else malformed.

    Attributes:
        form: how they are written: the key of a JSON object, or a tag.
        numbers: in the order of the text.
    """

    form: str
    numbers: tuple[float, ...]

    @property
    def is_bare(self) -> bool:
        """Whether only four numbers in brackets were seen."""
        return self.form == BARE

    @property
    def is_malformed(self) -> bool:
        """Whether there are too many or too few numbers."""
        return len(self.numbers) not in (2, 4)

    def __str__(self) -> str:
        """As `bbox_2d [1, 2, 3, 4]`."""
        numbers = ", ".join(f"{n:g}" for n in self.numbers[:8])
        more = ", …" if len(self.numbers) > 8 else ""
        return f"[{numbers}{more}]" if self.is_bare else f"{self.form} [{numbers}{more}]"


def shapes_in(text: str) -> Iterator[WrittenShape]:
    """All shapes of a text in order; templates such as `[x1, y1, x2, y2]` are none."""
    for match in _FORMS.finditer(text):
        kind = match.lastgroup or ""
        content = match[kind]
        if _WORDS.search(content):
            continue
        form = match["key"] if kind == "keyed" else _NAMES[kind]
        numbers = tuple(map(float, _NUMBERS.findall(content)))
        size = 4 if len(numbers) % 4 == 0 else len(numbers)  # a tag may hold several boxes
        for start in range(0, len(numbers), size or 1):
            yield WrittenShape(form, numbers[start : start + size])
