"""The content of a message: text, or a list of parts of text, pictures, videos and boxes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmkit.data.geometry.shapes import parse_groundings
from vlmkit.data.geometry.spaces import Picture, Relative1, Relative1000, SourcePixels, Space
from vlmkit.data.media import FrameSequence
from vlmkit.data.record import (
    GroundingPart,
    ImagePart,
    Message,
    Part,
    TextPart,
    VideoPart,
)
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.placeholders import MediaColumns
from vlmkit.data.sources.row import Node
from vlmkit.errors import DataError, Reason, RecordError, listed

KINDS = ("text", "image", "image_url", "video", "video_url", "boxes")
SPACES = ("pixels", "relative_1000", "relative_1")

_IMAGE_KEYS = ("image", "image_url", "url", "path")
_VIDEO_KEYS = ("video", "video_url", "url", "path")
_STRETCH = ("video_start", "video_end")
_CLOCK = ("fps", "sample_fps", "times")
_SHAPES = ("bbox_2d", "point_2d", "bbox_3d")


@dataclass(frozen=True)
class _Boxes(TextPart):
    """Boxes whose picture may come later in the conversation."""

    node: Node


class Content:
    """Reads the contents of one conversation's messages.

    Args:
        media: opens pictures and videos.
        held: those in columns of their own.
        trim: see `MediaColumns.split`.
        ignored: keys of parts that may be passed over.
    """

    def __init__(
        self, media: Media, held: MediaColumns, trim: bool, ignored: Sequence[str]
    ) -> None:
        self._media, self._held = media, held
        self._trim, self._ignored = trim, ignored

    def parts(self, node: Node) -> tuple[Part, ...]:
        """Parts in order; boxes are filled in by `with_boxes`."""
        if isinstance(node.value, list | tuple):
            return tuple(map(self._part, node.items()))
        if self._held.any:
            return self._held.split(node, self._trim)
        text = node.text()
        return (TextPart(text),) if text else ()

    def with_boxes(self, messages: list[Message]) -> list[Message]:
        """Messages with their boxes, now that all pictures are known."""
        images = [p for m in messages for p in m.parts if isinstance(p, ImagePart)]

        def filled(parts: Iterable[Part]) -> tuple[Part, ...]:
            return tuple(_grounding(p.node, images) if isinstance(p, _Boxes) else p for p in parts)

        return [replace(message, parts=filled(message.parts)) for message in messages]

    def _part(self, node: Node) -> Part:
        if isinstance(node.value, str):
            return TextPart(node.text())
        match self._kind(node):
            case "text":
                node.only("type", "text", ignored=self._ignored)
                return TextPart(node["text"].text())
            case "image" | "image_url":
                return self._image(node)
            case "video" | "video_url":
                return self._video(node)
            case _:
                known = ("type", "image", "space", "width", "height", "objects")
                node.only(*known, ignored=self._ignored)
                return _Boxes("", node)

    def _kind(self, node: Node) -> str:
        """What a part is: its `type`, or the one key that says it."""
        if (kind := node["type"]).is_there:
            if kind.text() not in KINDS:
                raise kind.error(
                    f"{kind.value[:40]!r} is no known part", f"parts are {listed(KINDS)}"
                )
            return kind.text()
        there = [kind for kind in KINDS if node[kind].is_there]
        if len(there) != 1:
            raise node.error("it does not say what it is", f"give a type: {listed(KINDS)}")
        return there[0]

    def _image(self, node: Node) -> Part:
        node.only("type", *_IMAGE_KEYS, ignored=self._ignored)
        named = node.first_of(*_IMAGE_KEYS)
        if not named.is_there:
            return self._held.next("image", node)
        return ImagePart(self._media.image(named))

    def _video(self, node: Node) -> Part:
        node.only("type", *_VIDEO_KEYS, *_STRETCH, *_CLOCK, ignored=self._ignored)
        named = node.first_of(*_VIDEO_KEYS)
        start, end = (node[key].number() if node[key].is_there else None for key in _STRETCH)
        if (start or 0) < 0 or (end is not None and end <= (start or 0)):
            raise node.error(
                f"its stretch goes from {start} s to {end} s", "give 0 <= video_start < video_end"
            )
        if isinstance(named.value, list | tuple):
            return VideoPart(self._frames(node, named), start, end)
        for key in _CLOCK:
            if key not in self._ignored and node[key].is_there:
                raise node[key].error(
                    "a video file has its own clock",
                    "only lists of frames need one; the processor's video.fps says how many frames "
                    "are kept",
                )
        if named.is_there:
            return VideoPart(self._media.video(named), start, end)
        part = self._held.next("video", node)
        assert isinstance(part, VideoPart)
        return VideoPart(part.video, start, end)

    def _frames(self, node: Node, named: Node) -> FrameSequence:
        """A video as a list of pictures, at a steady rate or at times of their own."""
        rate, times = node.first_of("fps", "sample_fps"), node["times"]
        if rate.is_there == times.is_there:
            problem = "it has two clocks" if rate.is_there else "its frames have no clock"
            raise node.error(
                problem, "give the fps at which they were taken, or their times", Reason.NO_CLOCK
            )
        frames = tuple(map(self._media.image, named.items()))
        if not frames:
            raise named.error("it is empty", "give the frames", Reason.NO_FRAMES)
        if rate.is_there:
            return FrameSequence.at_fps(frames, rate.number(), node.name)
        times_s = tuple(time.number() for time in times.items())
        return FrameSequence(frames, times_s, node.name)


def _grounding(node: Node, images: Sequence[ImagePart]) -> GroundingPart:
    number = node["image"].count() if node["image"].is_there else 0
    if number >= len(images):
        raise node.error(
            f"it is about image {number}, and the conversation has {len(images)}",
            "count its images from 0",
            Reason.BAD_GEOMETRY,
        )
    space = _space(node, images[number], Picture(number))
    objects = [_object(item) for item in node["objects"].items()]
    try:
        items = parse_groundings(json.dumps(objects), space)
    except DataError as error:
        raise RecordError(f"{node['objects'].name}: {error}", error.code) from error
    return GroundingPart(items=tuple(items), image=number)


def _space(node: Node, part: ImagePart, picture: Picture) -> Space:
    name, width, height = node["space"], node["width"], node["height"]
    if name.text() not in SPACES:
        raise name.error(
            f"{name.value[:40]!r} is no known space",
            f"say what the coordinates count: {listed(SPACES)}",
            Reason.BAD_GEOMETRY,
        )
    if name.value == "relative_1000":
        return Relative1000(on=picture)
    if name.value == "relative_1":
        return Relative1(on=picture)
    if not (width.is_there or height.is_there):
        return SourcePixels.of_size(part.image.size(), on=picture)
    try:
        return SourcePixels(width.number(), height.number(), on=picture)
    except RecordError:
        raise
    except DataError as error:
        raise RecordError(f"{node.name}: {error}", error.code) from error


def _object(node: Node) -> dict[str, Any]:
    """A labelled shape with values of the right kinds, nulls left out."""
    node.only(*_SHAPES, "start", "end", "label")
    found: dict[str, Any] = {}
    for key in _SHAPES:
        if node[key].is_there:
            found[key] = [item.number() for item in node[key].items()]
    for key in ("start", "end"):
        time = node[key]
        if time.is_there:
            found[key] = time.text() if isinstance(time.value, str) else time.number()
    return found | ({"label": node["label"].text()} if node["label"].is_there else {})
