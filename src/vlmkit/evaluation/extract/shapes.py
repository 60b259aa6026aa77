"""Boxes and points out of the JSON that a model wrote, well-formed or cut off, in the order of the text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vlmkit.data.geometry.shapes import Box, Point
from vlmkit.data.geometry.spaces import Space, finite
from vlmkit.errors import DataError

_FENCE = re.compile(r"```(?:json)?\s*", re.IGNORECASE)
_OBJECT = re.compile(r"\{[^{}]{0,4000}\}")
_EMPTY = re.compile(r"\[\s*\]")
BOX_KEYS = ("bbox_2d",)
POINT_KEYS = ("point_2d",)
CLICK_KEYS = ("coordinate", "point_2d")
BOX_3D_KEYS = ("bbox_3d",)


class Written(NamedTuple):
    """An object of a JSON text that holds a shape.

    Attributes:
        numbers: of the shape; None where it has not as many finite numbers as it must.
        label: empty where there is none.
        score: of confidence; 1 where none is written.
    """

    numbers: tuple[float, ...] | None
    label: str
    score: float


def written_shapes(text: str, keys: tuple[str, ...], count: int) -> list[Written] | None:
    """All objects with one of `keys`, nested or in a list, of the first JSON in a text.

    Where it was cut off, the objects that were finished count.

    Returns:
        An empty list where the JSON is an empty list; None where no object holds such a shape.
    """
    found = [_written(entry, keys, count) for entry in _entries(text, keys)]
    if found:
        return found
    return [] if _EMPTY.fullmatch(_unfenced(text)) else None


def boxes(text: str, space: Space) -> list[tuple[Box, str, float]] | None:
    """All valid boxes with labels and scores; `written_shapes` says what None means."""
    written = written_shapes(text, BOX_KEYS, 4)
    if written is None:
        return None
    valid = ((_box(entry.numbers, space), entry) for entry in written)
    return [(box, entry.label, entry.score) for box, entry in valid if box is not None]


def first_box(text: str, space: Space) -> Box | None:
    """The first box of the text, or None where it is no box: a later one is not looked for."""
    written = written_shapes(text, BOX_KEYS, 4)
    return _box(written[0].numbers, space) if written else None


def points(text: str, space: Space, keys: tuple[str, ...] = POINT_KEYS) -> list[Point] | None:
    """All valid points, or None where the text holds none."""
    written = written_shapes(text, keys, 2) or []
    found = (_point(entry.numbers, space) for entry in written)
    return [point for point in found if point is not None] or None


def first_point(text: str, space: Space, keys: tuple[str, ...] = POINT_KEYS) -> Point | None:
    """The first point of the text, or None where it is no point."""
    written = written_shapes(text, keys, 2)
    return _point(written[0].numbers, space) if written else None


def count_shapes(text: str) -> int | None:
    """How many different boxes, or else points, a text lists: counting by pointing at things."""
    for keys, count in ((BOX_KEYS, 4), (POINT_KEYS, 2)):
        written = written_shapes(text, keys, count)
        if written is not None:
            return len({entry.numbers for entry in written if entry.numbers})
    return None


def _point(numbers: tuple[float, ...] | None, space: Space) -> Point | None:
    if numbers is None:
        return None
    x, y = numbers
    return Point(x, y, space)


def _box(numbers: tuple[float, ...] | None, space: Space) -> Box | None:
    if numbers is None:
        return None
    x1, y1, x2, y2 = numbers
    try:
        return Box(x1, y1, x2, y2, space)
    except DataError:  # corners the wrong way round
        return None


def _written(entry: dict[str, Any], keys: tuple[str, ...], count: int) -> Written:
    values = next(entry[key] for key in keys if key in entry)
    label, score = entry.get("label", ""), entry.get("score", entry.get("confidence", 1.0))
    numbers = None
    if isinstance(values, list) and len(values) == count and all(map(_is_number, values)):
        numbers = tuple(map(float, values))
    score = float(score) if _is_number(score) and 0 <= score <= 1 else 1.0
    return Written(numbers, label if isinstance(label, str) else "", score)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and finite(value)


def _entries(text: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    if not any(f'"{key}"' in text for key in keys):
        return []
    whole = _decoded(_unfenced(text))
    if whole is not None:
        return [entry for entry in _objects(whole) if any(key in entry for key in keys)]
    objects = (_decoded(match[0]) for match in _OBJECT.finditer(text))
    return [e for e in objects if isinstance(e, dict) and any(key in e for key in keys)]


def _unfenced(text: str) -> str:
    """From the first fence or bracket on."""
    fence = _FENCE.search(text)
    if fence:
        text = text[fence.end() :].partition("```")[0]
    start = min((i for i in (text.find("["), text.find("{")) if i >= 0), default=len(text))
    return text[start:].strip()


def _decoded(text: str) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects within a JSON value, outer ones first, in the order of the text."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            yield entry
            waiting.extend(reversed(entry.values()))
        elif isinstance(entry, list):
            waiting.extend(reversed(entry))
