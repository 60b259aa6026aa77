"""What is right, read from the columns of a row in the form that a metric compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from vlmkit.data.geometry.shapes import Box, Box3D, Grounding, TimeSpan
from vlmkit.data.geometry.spaces import Relative1, SourcePixels, Space
from vlmkit.data.record import ImagePart, Part
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Node, Row
from vlmkit.errors import DataError
from vlmkit.evaluation.asks.values import (
    at,
    first_there,
    listed,
    needed,
    number_of,
    numbers_of,
    text_of,
)
from vlmkit.evaluation.extract.blocks import Block
from vlmkit.evaluation.metrics.detection_sets import OfSet
from vlmkit.evaluation.metrics.grounding import Mask
from vlmkit.evaluation.metrics.yes_no import HallusionQuestion


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text."""

    column: str = "answer"

    def __call__(self, row: Row, parts: Sequence[Part]) -> str:
        """See `ReadTarget`."""
        return needed(at(row, self.column)).strip()


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Several texts of which any is right: a list, or a text that is one in Python or JSON."""

    columns: Sequence[str] = ("answer",)

    def __call__(self, row: Row, parts: Sequence[Part]) -> list[str]:
        """See `ReadTarget`."""
        node = first_there(row, self.columns)
        texts = [needed(item).strip() for item in listed(node)]
        if not texts:
            raise node.error("it is missing", "without a right answer nothing can be scored")
        return texts


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number."""

    column: str = "answer"

    def __call__(self, row: Row, parts: Sequence[Part]) -> float:
        """See `ReadTarget`."""
        return number_of(at(row, self.column))


@dataclass(frozen=True, kw_only=True)
class Count:
    """A whole number, counted from 0."""

    column: str = "number"

    def __call__(self, row: Row, parts: Sequence[Part]) -> int:
        """See `ReadTarget`."""
        node = at(row, self.column)
        return node.replaced(number_of(node)).count()


_YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no", "1": "yes", "0": "no"}


@dataclass(frozen=True, kw_only=True)
class YesNo:
    """Yes or no, in words, as true or false, or as 1 or 0."""

    column: str = "answer"

    def __call__(self, row: Row, parts: Sequence[Part]) -> str:
        """See `ReadTarget`."""
        node = at(row, self.column)
        found = _YES_NO.get(needed(node).strip().lower())
        if found is None:
            raise node.error(f"{node.value!r} is neither yes nor no", "mend the row")
        return found


@dataclass(frozen=True, kw_only=True)
class FigureQuestion:
    """HallusionBench: yes or no, and which question about which figure of which set it is.

    The ids stand at the end of `index`, as in `VD_figure_2_1_0_1`: set, figure, question.
    """

    answer: YesNo = field(default_factory=YesNo)
    index: str = "index"
    subcategory: str = "l2-category"

    def __call__(self, row: Row, parts: Sequence[Part]) -> HallusionQuestion:
        """See `ReadTarget`."""
        node = at(row, self.index)
        ids = needed(node).split("_")
        if len(ids) < 4 or not all(part.isdecimal() for part in ids[-3:]):
            raise node.error(
                f"{node.value!r} does not end with set, figure and question", "mend the row"
            )
        subcategory = needed(at(row, self.subcategory))
        return HallusionQuestion(self.answer(row, parts), subcategory, *ids[-3:])


@dataclass(frozen=True, kw_only=True)
class BoxTarget:
    """A box in the picture.

    Attributes:
        column: with four numbers.
        sized: they are left, top, width and height; else left, top, right and bottom.
        up_to: what they count to across and down; None: pixels.
        size: columns with width and height of the picture in pixels; none: from its file.
    """

    column: str = "bbox"
    sized: bool = False
    up_to: float | None = None
    size: Sequence[str] = ()

    def __call__(self, row: Row, parts: Sequence[Part]) -> Box:
        """See `ReadTarget`."""
        node = at(row, self.column)
        x1, y1, x2, y2 = numbers_of(node, 4)
        if self.sized:
            x2, y2 = x1 + x2, y1 + y2
        try:
            return Box(x1, y1, x2, y2, space_of(row, parts, self.up_to, self.size))
        except DataError as error:
            raise node.error(str(error), "mend the row") from error


def space_of(row: Row, parts: Sequence[Part], up_to: float | None, size: Sequence[str]) -> Space:
    """What the numbers of a row count; see `BoxTarget`."""
    if up_to is not None:
        return Space(up_to, up_to)
    if size:
        numbers = [number_of(item) for column in size for item in listed(at(row, column))]
        if len(numbers) != 2:
            raise row.error(
                f"{', '.join(size)} have {len(numbers)} numbers", "width and height are two"
            )
        return SourcePixels(width=numbers[0], height=numbers[1])
    picture = next((part for part in parts if isinstance(part, ImagePart)), None)
    if picture is None:
        raise row.error("there is no picture whose pixels a box could count", "mend the row")
    return SourcePixels.of_size(picture.image.size())


@dataclass(frozen=True, kw_only=True)
class MaskTarget:
    """An area, as a picture that is not black there."""

    column: str = "mask"
    media: Media = field(default_factory=Media)

    def __call__(self, row: Row, parts: Sequence[Part]) -> Mask:
        """See `ReadTarget`."""
        pixels = np.asarray(self.media.image(at(row, self.column)).open().convert("L"))
        if not pixels.any():
            raise at(row, self.column).error("the mask is black", "no point could be right")
        return Mask(pixels > 0, Relative1())


@dataclass(frozen=True, kw_only=True)
class PolygonTarget:
    """An area, as a list of corners between 0 and 1: `[(0.2, 0.4), (0.3, 0.4), ...]`.

    Attributes:
        column: with the list.
        grid: rows and columns that it is drawn on.
    """

    column: str = "answer"
    grid: int = 1000

    def __call__(self, row: Row, parts: Sequence[Part]) -> Mask:
        """See `ReadTarget`."""
        node = at(row, self.column)
        corners = [tuple(numbers_of(item, 2)) for item in listed(node)]
        if len(corners) < 3:
            raise node.error(f"it has {len(corners)} corners", "an area has three or more")
        drawn = Image.new("1", (self.grid, self.grid))
        ImageDraw.Draw(drawn).polygon([(x * self.grid, y * self.grid) for x, y in corners], fill=1)
        return Mask(np.asarray(drawn), Relative1())


@dataclass(frozen=True, kw_only=True)
class SpanTarget:
    """A stretch of a video in seconds: a column with both ends, or a column for each."""

    columns: Sequence[str] = ("timestamp",)

    def __call__(self, row: Row, parts: Sequence[Part]) -> TimeSpan:
        """See `ReadTarget`."""
        ends = [number_of(item) for column in self.columns for item in listed(at(row, column))]
        if len(ends) != 2:
            raise row.error(
                f"{', '.join(self.columns)} have {len(ends)} times", "a stretch has two"
            )
        try:
            return TimeSpan(*ends)
        except DataError as error:
            raise row.error(str(error), "mend the row") from error


@dataclass(frozen=True, kw_only=True)
class LabelledBoxes:
    """All boxes of a picture with their labels; left, top, width and height in pixels.

    Attributes:
        boxes: column with a list of four numbers each.
        labels: column with as many names.
        size: columns with width and height of the picture.
    """

    boxes: str = "boxes"
    labels: str = "labels"
    size: Sequence[str] = ("width", "height")

    def __call__(self, row: Row, parts: Sequence[Part]) -> list[Grounding]:
        """See `ReadTarget`; boxes that reach beyond the picture are cut off."""
        space = space_of(row, parts, None, self.size)
        nodes, labels = listed(at(row, self.boxes)), listed(at(row, self.labels))
        if len(nodes) != len(labels):
            raise row.error(f"it has {len(nodes)} boxes and {len(labels)} labels", "mend the row")
        found = []
        for node, label in zip(nodes, labels, strict=True):
            x, y, width, height = numbers_of(node, 4)
            try:
                box = Box(x, y, x + width, y + height, space).clipped()
            except DataError as error:
                raise node.error(str(error), "mend the row") from error
            found.append(Grounding(box, needed(label)))
        return found


@dataclass(frozen=True, kw_only=True)
class BoxesOfSet:
    """All boxes of a picture, and the set that it belongs to.

    Attributes:
        boxes: finds the boxes.
        name: column with the name of the set.
    """

    boxes: LabelledBoxes = field(default_factory=LabelledBoxes)
    name: str = "set"

    def __call__(self, row: Row, parts: Sequence[Part]) -> OfSet:
        """See `ReadTarget`."""
        return OfSet(needed(at(row, self.name)), tuple(self.boxes(row, parts)))


@dataclass(frozen=True, kw_only=True)
class Boxes3D:
    """All boxes of one category: nine numbers each, see `Box3D`."""

    boxes: str = "boxes"
    label: str = "category"

    def __call__(self, row: Row, parts: Sequence[Part]) -> list[Grounding]:
        """See `ReadTarget`."""
        name = needed(at(row, self.label))
        found = []
        for node in listed(at(row, self.boxes)):
            x, y, z, across, down, deep, roll, pitch, yaw = numbers_of(node, 9)
            try:
                box = Box3D((x, y, z), (across, down, deep), roll, pitch, yaw)
            except DataError as error:
                raise node.error(str(error), "mend the row") from error
            found.append(Grounding(box, name))
        return found


@dataclass(frozen=True, kw_only=True)
class PageTarget:
    """The blocks of an OmniDocBench page in reading order, without figures and what repeats on pages.

    Attributes:
        column: with the blocks: `category_type`, `order`, `text`, `latex`, `html`, `ignore`.
        texts: categories whose `text` is a paragraph.
    """

    column: str = "layout_dets"
    texts: Sequence[str] = (
        *("title", "text_block", "reference", "code_txt", "code_txt_caption", "list_group"),
        *(
            "figure_caption",
            "figure_footnote",
            "table_caption",
            "table_footnote",
            "equation_caption",
        ),
    )

    def __call__(self, row: Row, parts: Sequence[Part]) -> list[Block]:
        """See `ReadTarget`."""
        found: list[tuple[float, Block]] = []
        for node in listed(at(row, self.column)):
            block = self._block(node)
            if block is not None and block.text and not node["ignore"].value:
                order = node["order"]
                found.append((number_of(order) if order.is_there else float("inf"), block))
        if not found:
            raise at(row, self.column).error("the page has no text", "leave it out")
        return [block for _, block in sorted(found, key=lambda item: item[0])]

    def _block(self, node: Node) -> Block | None:
        kind = needed(node["category_type"])
        if kind == "table":
            return Block("table", needed(node["html"]).strip())
        if kind == "equation_isolated":
            return Block("formula", needed(node["latex"]).strip().strip("$").strip())
        return (
            Block("text", " ".join((text_of(node["text"]) or "").split()))
            if kind in self.texts
            else None
        )
