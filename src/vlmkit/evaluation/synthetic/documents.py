"""Pages with headings, paragraphs and a table, in one column or two, and their Markdown."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from functools import partial

from PIL import Image, ImageDraw

from vlmkit.data.record import ImagePart, TextPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.extract.blocks import Block
from vlmkit.evaluation.synthetic.fonts import (
    SANS,
    SERIF,
    SERIF_BOLD,
    font,
    text_width,
    wrapped,
)
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, some_of
from vlmkit.evaluation.synthetic.sentences import heading, paragraph

LEADING = 1.35
"""Height of a line over the size of its letters."""

_COLUMNS = ("Visitors", "Trees", "Boats", "Letters", "Lamps", "Bells")
_ROWS = ("Athens", "Bergen", "Cairo", "Lisbon", "Oslo", "Prague", "Riga", "Tokyo")


@dataclass
class Page:
    """What stands on a page so far.

    Attributes:
        texts: left, top, words, font, size.
        lines: of tables: left, top, right, bottom.
        blocks: truth, in reading order.
        markdown: of the truth.
    """

    texts: list[tuple[float, float, str, str, int]] = field(default_factory=list)
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    markdown: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ParseDocument:
    """Write a page as Markdown, its table as HTML. Pages of one and of two columns in turn.

    Two columns are read one after the other; the order is part of the truth.

    Attributes:
        font_px: size of the letters.
        rows: smallest and largest number of rows of the table, without its head.
        columns: smallest and largest number of columns of the table.
        width: of a page, in pixels.
        height: of a page.
    """

    font_px: int = 17
    rows: tuple[int, int] = (2, 4)
    columns: tuple[int, int] = (2, 3)
    width: int = 768
    height: int = 992

    def __post_init__(self) -> None:
        """Refuse tables that have no names, and pages that would be empty."""
        for name, (least, most), available in (
            ("rows", self.rows, len(_ROWS)),
            ("columns", self.columns, len(_COLUMNS)),
        ):
            if not 1 <= least <= most <= available:
                raise ConfigError(
                    f"{name} is {[least, most]}; give least and most, within 1..{available}"
                )
        if self.width < 24 * self.font_px or self.height < 40 * self.font_px:
            raise ConfigError(
                f"width is {self.width} and height {self.height}: letters of {self.font_px} pixels need "
                f"{24 * self.font_px} by {40 * self.font_px}"
            )

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        page = self._page(rng, 1 + index % 2)
        image = DrawnImage(partial(_draw, page, self.width, self.height), self.width, self.height)
        ask = TextPart("Write this page as Markdown. Write tables as HTML.")
        return Made(
            parts=(ImagePart(image), ask),
            target=page.blocks,
            categories={"columns": "one" if index % 2 == 0 else "two"},
            meta={"right": "\n\n".join(page.markdown)},
        )

    def _page(self, rng: Rng, num_columns: int) -> Page:
        """Fill a page from top to bottom, column by column; the table stands in a random one."""
        page, margin, gap = Page(), self.width // 14, self.width // 24
        width = (self.width - 2 * margin - gap * (num_columns - 1)) // num_columns
        title = f"{heading(rng)} and {heading(rng)}"
        size = round(self.font_px * (1.6 if num_columns == 1 else 1.5))
        top = self._flow(page, title, SERIF_BOLD, size, margin, margin, self.width - 2 * margin)
        self._add(page, Block("text", title), f"# {title}")
        with_table = int(rng.integers(num_columns))
        for column in range(num_columns):
            left, at = margin + column * (width + gap), top + self.font_px
            reserve = self._table_height() if column == with_table else 0
            number = 0
            while True:
                opens = number % 3 == 0
                words = heading(rng) if opens else paragraph(rng, 2, 3)
                style = (SERIF_BOLD, self.font_px * 6 // 5) if opens else (SERIF, self.font_px)
                needed = len(wrapped(words, *style, width)) * style[1] * LEADING
                following = 14 * self.font_px if opens else 0  # no heading is the last of a column
                if at + needed + following + reserve > self.height - margin:
                    break
                at = self._flow(page, words, *style, left, at, width) + self.font_px * 0.7
                self._add(page, Block("text", words), f"## {words}" if opens else words)
                number += 1
                if reserve and number == 2:
                    at = self._table(page, rng, left, at, width) + self.font_px
                    reserve = 0
        return page

    @staticmethod
    def _add(page: Page, block: Block, markdown: str) -> None:
        page.blocks.append(block)
        page.markdown.append(markdown)

    def _table_height(self) -> float:
        return (self.rows[1] + 2) * self.font_px * 1.7

    def _flow(
        self, page: Page, words: str, name: str, size: int, left: float, top: float, width: float
    ) -> float:
        """Set a paragraph, and return where it ends."""
        for line in wrapped(words, name, size, width):
            page.texts.append((left, top, line, name, size))
            top += size * LEADING
        return top

    def _table(self, page: Page, rng: Rng, left: float, top: float, width: float) -> float:
        """Set a table, and return where it ends."""
        names = some_of(rng, _COLUMNS, int(rng.integers(self.columns[0], self.columns[1] + 1)))
        places = some_of(rng, _ROWS, int(rng.integers(self.rows[0], self.rows[1] + 1)))
        rows = [["Place", *names]]
        rows += [[place, *(str(rng.integers(10, 1000)) for _ in names)] for place in places]
        size, step, across = self.font_px * 9 // 10, self.font_px * 1.7, width / len(rows[0])
        widest = max(text_width(cell, SANS, size) for row in rows for cell in row)
        size = min(size, int(size * (across - 8) / widest))
        for i, row in enumerate(rows):
            for j, cell in enumerate(row):
                page.texts.append(
                    (left + j * across + 5, top + i * step + step * 0.2, cell, SANS, size)
                )
        for i in range(len(rows) + 1):
            page.lines.append((left, top + i * step, left + width, top + i * step))
        for j in range(len(rows[0]) + 1):
            at = left + j * across
            page.lines.append((at, top, at, top + len(rows) * step))
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        text = f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
        self._add(page, Block("table", text), text)
        return top + len(rows) * step


def _draw(page: Page, width: int, height: int) -> Image.Image:
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for left, top, words, name, size in page.texts:
        pen.text((left, top), words, fill="#141414", font=font(name, size))
    for line in page.lines:
        pen.line(line, fill="#444444", width=1)
    return canvas
