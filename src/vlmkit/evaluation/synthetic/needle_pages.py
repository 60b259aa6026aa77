"""A sentence that matters on one of many pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from vlmkit.data.record import ImagePart, TextPart
from vlmkit.evaluation.metrics.needle import Needle
from vlmkit.evaluation.synthetic.fonts import BOLD, SERIF, font, text_width, wrapped
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, child, some_of
from vlmkit.evaluation.synthetic.haystack import cell_of, check_grid, marked_places
from vlmkit.evaluation.synthetic.sentences import heading, sentence

_CITIES = (
    *("Athens", "Bergen", "Cairo", "Dakar", "Geneva", "Havana", "Jakarta", "Lisbon"),
    *("Madrid", "Nairobi", "Oslo", "Prague", "Quito", "Riga", "Tokyo", "Vienna"),
)


@dataclass(frozen=True, kw_only=True)
class NeedleInPages:
    """A document of many pages, one of which says the code of a city. Other pages say those of others.

    Attributes:
        lengths: numbers of pages.
        depths: of the page that is asked about, 0 for the first and 1 for the last.
        distractors: pages at most that say the code of another city.
        smallest: code.
        largest: code.
        width: of a page, in pixels.
        height: of a page, in pixels.
        font_px: size of the letters.
    """

    lengths: Sequence[int]
    depths: Sequence[float]
    distractors: int = 3
    smallest: int = 10
    largest: int = 99
    width: int = 448
    height: int = 576
    font_px: int = 17

    def __post_init__(self) -> None:
        """Refuse a grid without cells."""
        check_grid(self.lengths, self.depths, self.distractors)

    @property
    def chance(self) -> float:
        """Of a blind guess among the codes."""
        return 1 / (self.largest - self.smallest + 1)

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        cell = cell_of(index, self.lengths, self.depths)
        places = marked_places(rng, cell, cell.length, min(self.distractors, len(_CITIES) - 1))
        cities = some_of(rng, _CITIES, len(places))
        numbers = rng.permutation(np.arange(self.smallest, self.largest + 1))[: len(places)]
        facts = {
            place: f"The code of {city} is {number}."
            for place, city, number in zip(places, cities, numbers.tolist(), strict=True)
        }
        pages = tuple(
            ImagePart(
                DrawnImage(
                    partial(self._draw, child(rng), facts.get(place), place + 1),
                    self.width, self.height, f"page {place + 1} of {cell.length}",
                )
            )
            for place in range(cell.length)
        )  # fmt: skip
        words = TextPart(
            f"What is the code of {cities[0]}? It is a number from {self.smallest} to {self.largest}. "
            "Answer with the number."
        )
        target = Needle(str(numbers[0]), cell.length, cell.depth, self.chance)
        return Made(parts=(*pages, words), target=target, categories=cell.categories)

    def _draw(self, seed: int, fact: str | None, number: int) -> Image.Image:
        rng = np.random.default_rng(seed)
        page = Image.new("RGB", (self.width, self.height), "white")
        pen = ImageDraw.Draw(page)
        margin, step = self.width // 14, round(self.font_px * 1.4)
        title, small = font(BOLD, round(self.font_px * 1.4)), font(SERIF, self.font_px * 3 // 4)
        pen.text((margin, margin), heading(rng), fill="black", font=title)
        top = margin + 2 * step
        rows = (self.height - margin - step - top) // step
        lines = self._lines(rng, fact, rows)
        for row, line in enumerate(lines):
            where = (margin, top + row * step)
            pen.text(where, line, fill="#1a1a1a", font=font(SERIF, self.font_px))
        foot = (self.width / 2, self.height - margin / 2)
        pen.text(foot, str(number), fill="black", font=small, anchor="mm")
        return page

    def _lines(self, rng: Rng, fact: str | None, rows: int) -> list[str]:
        """As many as there is room for; the fact is among them, whole."""
        width = self.width - 2 * (self.width // 14)
        sentences: list[str] = []
        length = 0.0
        while length < rows * width:
            sentences.append(sentence(rng))
            length += text_width(sentences[-1], SERIF, self.font_px)
        if fact is not None:
            sentences.insert(int(rng.integers(len(sentences) * 2 // 3 + 1)), fact)
        lines = wrapped(" ".join(sentences), SERIF, self.font_px, width)
        return lines[:rows]
