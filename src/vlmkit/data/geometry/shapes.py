"""Boxes and points that know their space; conversions between spaces, and the only way to text.

A shape goes to any space of its picture: `box.to(Relative1000())`, `box.to(ResizedPixels(640, 352))`.
Text of Qwen3-VL counts from 0 to 1000 over the picture, whatever its size; Qwen2.5-VL counted pixels of
the resized picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from vlmkit.data.geometry.spaces import (
    FIRST_PICTURE,
    Crop,
    Picture,
    Relative1,
    Relative1000,
    ResizedPixels,
    SourcePixels,
    Space,
    View,
    finite,
    refuse,
)

__all__ = [
    "Box",
    "Box3D",
    "Crop",
    "Grounding",
    "Picture",
    "Point",
    "Relative1",
    "Relative1000",
    "ResizedPixels",
    "Shape",
    "SourcePixels",
    "Space",
    "TimeSpan",
    "View",
    "clock",
    "grounding_text",
    "in_pixels",
    "parse_groundings",
    "seconds",
]

DECIMALS_3D = 2
"""Decimals of a `Box3D` in text: centimetres, hundredths of a radian."""


@dataclass(frozen=True)
class Point:
    """A point in a space. It may lie outside the view; it then has no text."""

    x: float
    y: float
    space: Space

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        if not finite(*self.coordinates):
            refuse(f"{self.name} has coordinates that are no finite numbers")

    @property
    def coordinates(self) -> tuple[float, float]:
        """x and y."""
        return self.x, self.y

    @property
    def name(self) -> str:
        """For messages."""
        return f"point {list(self.coordinates)} in {self.space}"

    def to(self, space: Space) -> Point:
        """The same point in another space of the picture; see `Space.convert`."""
        return Point(*self.space.convert(self.x, self.y, space), space)


@dataclass(frozen=True)
class Box:
    """A box in a space, from its left upper to its right lower corner.

    It may reach beyond the view (`clipped` cuts it off) and may have no area.

    Raises:
        DataError: a coordinate is not finite, or the corners are the wrong way round.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    space: Space

    def __post_init__(self) -> None:
        """Refuse what is no box."""
        if not finite(*self.coordinates):
            refuse(f"{self.name} has coordinates that are no finite numbers")
        if self.x1 > self.x2 or self.y1 > self.y2:
            refuse(
                f"{self.name} ends before it begins; write [x1, y1, x2, y2] with x1 <= x2 and "
                "y1 <= y2 (is this [x, y, width, height]?)"
            )

    @property
    def coordinates(self) -> tuple[float, float, float, float]:
        """x1, y1, x2 and y2."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def name(self) -> str:
        """For messages."""
        return f"box {list(self.coordinates)} in {self.space}"

    @property
    def area(self) -> float:
        """In units of its space."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)

    def to(self, space: Space) -> Box:
        """The same box in another space of the picture; see `Space.convert`."""
        corners = (
            *self.space.convert(self.x1, self.y1, space),
            *self.space.convert(self.x2, self.y2, space),
        )
        return Box(*corners, space)

    def clipped(self) -> Box:
        """What of it lies within the view.

        Raises:
            DataError: nothing does.
        """
        width, height = self.space.width, self.space.height
        if self.x2 < 0 or self.y2 < 0 or self.x1 > width or self.y1 > height:
            refuse(f"{self.name} lies outside altogether; is this the space it was made in?")
        return Box(
            max(self.x1, 0), max(self.y1, 0), min(self.x2, width), min(self.y2, height), self.space
        )

    def iou(self, other: Box) -> float:
        """Area of the intersection over that of the union; `other` may be in another space."""
        other = other.to(self.space)
        across = max(0, min(self.x2, other.x2) - max(self.x1, other.x1))
        down = max(0, min(self.y2, other.y2) - max(self.y1, other.y1))
        union = self.area + other.area - across * down
        return across * down / union if union else 0.0


@dataclass(frozen=True)
class Box3D:
    """A box in the coordinates of the camera that took a picture.

    Angles are radians, and text names them roll, pitch, yaw, as the wording of the Qwen3-VL cookbook
    does. Its drawing code disagrees: it multiplies each by 180 degrees, and takes them for pitch,
    yaw, roll. Boxes that a published model wrote are best looked at under both readings.

    Attributes:
        center_m: x, y, z in metres.
        size_m: extent along x, y, z in metres before the rotation.
        roll_rad: rotation, in radians.
        pitch_rad: rotation, in radians.
        yaw_rad: rotation, in radians.
        on: the picture.

    Raises:
        DataError: a number is not finite, or a size is negative.
    """

    center_m: tuple[float, float, float]
    size_m: tuple[float, float, float]
    roll_rad: float = 0.0
    pitch_rad: float = 0.0
    yaw_rad: float = 0.0
    on: Picture = FIRST_PICTURE

    def __post_init__(self) -> None:
        """Refuse what is no box."""
        if not finite(*self.numbers):
            refuse(f"3-D box {list(self.numbers)} has entries that are no finite numbers")
        if min(self.size_m) < 0:
            refuse(f"3-D box {list(self.numbers)} has a negative size; sizes are entries 4 to 6")

    @property
    def numbers(self) -> tuple[float, ...]:
        """The nine numbers in the order of the published text."""
        return (*self.center_m, *self.size_m, self.roll_rad, self.pitch_rad, self.yaw_rad)


@dataclass(frozen=True)
class TimeSpan:
    """A stretch of a video, in seconds from its beginning.

    Raises:
        DataError: not `0 <= start_s <= end_s`.
    """

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        """Refuse what is no stretch."""
        if not (finite(self.start_s, self.end_s) and 0 <= self.start_s <= self.end_s):
            refuse(f"{self} must be finite, not begin before 0 s and not end before it begins")


Shape = Box | Point | Box3D | TimeSpan
Flat = TypeVar("Flat", Box, Point)


@dataclass(frozen=True)
class Grounding:
    """A labelled shape in a picture, or stretch of a video."""

    shape: Shape
    label: str = ""


def in_pixels(shape: Flat, width: int, height: int) -> Flat:
    """A shape in pixels of its own view, for drawing on that view at `width` by `height`."""
    return shape.to(ResizedPixels(width, height, on=shape.space.on))


def clock(time_s: float) -> str:
    """A time as `mm:ss.ff`, as the published text of events has it; minutes go beyond 59."""
    hundredths = round(time_s * 100)
    return f"{hundredths // 6000:02}:{hundredths // 100 % 60:02}.{hundredths % 100:02}"


def seconds(time_s: float) -> float:
    """A time as a number of seconds with two decimals, as prompts that ask for seconds want it."""
    return round(time_s, 2)


def grounding_text(
    items: Sequence[Grounding],
    space: Space | None = None,
    time: Callable[[float], str | float] = clock,
) -> str:
    """The published JSON of shapes, such as `[{"bbox_2d": [12, 40, 380, 511], "label": "cup"}]`.

    Coordinates are rounded to whole numbers, so a small box may lose its area.

    Args:
        items: in order. An empty label is left out.
        space: what the text counts in. None is 0 to 1000 over the view that all shapes stand on: a
            box in a crop is written relative to the crop. `Relative1000()` writes it relative to
            the whole picture, as Qwen3-VL's zoom tool wants it, and `ResizedPixels` is for Qwen2.5-VL.
        time: how times are written, `clock` or `seconds`.

    Raises:
        DataError: a shape belongs to another picture or reaches beyond the space; or shapes stand on
            different views and `space` does not say which is meant.
    """
    if space is None:
        views = list(
            dict.fromkeys(i.shape.space.on for i in items if isinstance(i.shape, Box | Point))
        )
        if len(views) > 1:
            refuse(f"one text cannot hold shapes on {views[0]} and on {views[1]}; give a space")
        space = Relative1000(on=views[0]) if views else None
    fields = [
        _fields(item.shape, space, time) | ({"label": item.label} if item.label else {})
        for item in items
    ]
    return json.dumps(fields, ensure_ascii=False)


def parse_groundings(text: str, space: Space | None = None) -> list[Grounding]:
    """Read back what `grounding_text` wrote, or what a model did.

    The JSON may stand in a ```` ```json ```` fence with words around it. A single object counts as a
    list of one; fields other than the shape and the label are left out.

    Args:
        text: of an answer.
        space: what the text counts in. None is `Relative1000()` of the first picture.

    Raises:
        DataError: it is not JSON, an object has not exactly one shape, or a shape is not valid.
    """
    space = space or Relative1000()
    fence = None if text.lstrip()[:1] in ("[", "{") else _FENCE.search(text)
    try:
        if fence:  # a label may hold backticks, too: the fence ends where the JSON does
            found, _ = json.JSONDecoder().raw_decode(text, fence.end())
        else:
            found = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(f"{_short(text)} is not JSON ({error})")
    return [_grounding(entry, space) for entry in (found if isinstance(found, list) else [found])]


_FENCE = re.compile(r"```(?:json)?\s*")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
_NUM_VALUES = {"bbox_2d": 4, "point_2d": 2, "bbox_3d": 9, "start": 1}


def _fields(
    shape: Shape, space: Space | None, time: Callable[[float], str | float]
) -> dict[str, Any]:
    match shape:
        case Box():
            return {"bbox_2d": _whole_numbers(shape, space or shape.space)}
        case Point():
            return {"point_2d": _whole_numbers(shape, space or shape.space)}
        case Box3D():
            if space and space.on.root != shape.on:
                refuse(f"a 3-D box of image {shape.on.image} is not of image {space.on.root.image}")
            return {"bbox_3d": [round(float(n), DECIMALS_3D) + 0.0 for n in shape.numbers]}
        case TimeSpan():
            return {"start": time(shape.start_s), "end": time(shape.end_s)}


def _whole_numbers(shape: Box | Point, space: Space) -> list[int]:
    numbers = [round(n) for n in shape.to(space).coordinates]
    bounds = (space.width, space.height) * 2
    if any(not 0 <= n <= bound for n, bound in zip(numbers, bounds, strict=False)):
        refuse(
            f"{shape.name} would be written as {numbers}, beyond 0 to {space.width} across or 0 to "
            f"{space.height} down; name the space it was made in, or clip it with Box.clipped"
        )
    return numbers


def _grounding(entry: object, space: Space) -> Grounding:
    if not isinstance(entry, dict):
        refuse(f"{_short(entry)} is not an object with a shape and a label")
    kinds = [key for key in _NUM_VALUES if key in entry]
    if len(kinds) != 1:
        refuse(f"{_short(entry)} must have exactly one of {', '.join(_NUM_VALUES)}")
    label = entry.get("label", "")
    if not isinstance(label, str):
        refuse(f"{_short(entry)} has a label that is not text")
    kind = kinds[0]
    if kind == "start":
        return Grounding(TimeSpan(_seconds(entry["start"]), _seconds(entry.get("end"))), label)
    values = entry[kind]
    count = _NUM_VALUES[kind]
    if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
        refuse(f"{_short(entry)}: {kind} must be a list of {count} numbers")
    if kind == "bbox_2d":
        x1, y1, x2, y2 = values
        return Grounding(Box(x1, y1, x2, y2, space), label)
    if kind == "point_2d":
        x, y = values
        return Grounding(Point(x, y, space), label)
    x, y, z, across, down, deep, roll, pitch, yaw = values
    box = Box3D((x, y, z), (across, down, deep), roll, pitch, yaw, on=space.on.root)
    return Grounding(box, label)


def _seconds(value: object) -> float:
    if _is_number(value):
        return float(value)
    parts = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if not parts:
        refuse(f"{_short(value)} is not a time; write seconds as a number, or mm:ss.ff")
    hours, minutes, rest = parts.groups(default="0")
    return round(int(hours) * 3600 + int(minutes) * 60 + float(rest), 6)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object, most: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= most else text[:most] + "…")
