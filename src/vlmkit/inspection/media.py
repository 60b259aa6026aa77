"""Pictures and videos of a sample as the model gets them, with what is said about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from vlmkit.batch import Grid
from vlmkit.data.geometry.shapes import (
    Box,
    Crop,
    Grounding,
    Point,
    ResizedPixels,
    TimeSpan,
    clock,
    parse_groundings,
)
from vlmkit.data.image import ImageTransform, PlannedImage
from vlmkit.data.processor import PlannedMedia
from vlmkit.data.record import Conversation, GroundingPart, ImagePart, TextPart
from vlmkit.data.video import PlannedVideo, VideoTransform
from vlmkit.errors import DataError
from vlmkit.inspection.pictures import Pixels, denormalize, unpatchify


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A box or point in pixels of the picture as the model gets it: (x1, y1, x2, y2) or (x, y)."""

    coordinates: tuple[float, ...]
    label: str
    from_text: bool  # read from the answer's text, not stated by the record

    @property
    def is_point(self) -> bool:
        """Whether it is a point."""
        return len(self.coordinates) == 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """Visual tokens in a row without a break: a picture, or temporal patches of a video."""

    start: int  # place of the first token in its row
    num_tokens: int
    first_patch: int  # temporal patch
    num_patches: int
    written: str | None = None  # the time that stands before it in the text


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A picture or video of a sample.

    Attributes:
        kind: `image` or `video`.
        number: counts the sample's images, or videos, from 1.
        patches: (patches, patch_dim), from the batch.
        grid: temporal patches, rows and columns, in patches.
        transform: how the patches were made.
        runs: its visual tokens.
        planned: what it was made from, where that is known.
        shapes: to draw on it.
        notes: shapes that cannot be drawn, in words.
    """

    kind: str
    number: int
    patches: Tensor
    grid: Grid
    transform: ImageTransform | VideoTransform
    runs: tuple[Run, ...]
    planned: PlannedMedia | None = None
    shapes: tuple[Drawn, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as the model gets it, in pixels."""
        return self.grid[1] * self.transform.patch_size, self.grid[2] * self.transform.patch_size

    @property
    def source_size(self) -> tuple[int, int] | None:
        """Height and width of the file."""
        known = isinstance(self.planned, PlannedImage | PlannedVideo)
        return self.planned.source_size if known else None  # type: ignore[union-attr]

    @property
    def num_rows(self) -> int:
        """Visual tokens from top to bottom."""
        return self.grid[1] // self.transform.merge_size

    @property
    def num_columns(self) -> int:
        """Visual tokens from left to right."""
        return self.grid[2] // self.transform.merge_size

    @property
    def frames_per_patch(self) -> int:
        """Frames of a temporal patch."""
        return self.transform.temporal_patch_size

    @property
    def patch_starts(self) -> list[int]:
        """Place of the first token of each temporal patch in its row."""
        size = self.num_rows * self.num_columns
        return [run.start + i * size for run in self.runs for i in range(run.num_patches)]

    def frames(self) -> Pixels:
        """Pixels from the batch, (frames, height, width, 3); a picture is a single frame."""
        transform = self.transform
        frames = unpatchify(
            self.patches,
            self.grid,
            patch_size=transform.patch_size,
            temporal_patch_size=transform.temporal_patch_size,
            merge_size=transform.merge_size,
        )
        kept = frames[:1] if self.kind == "image" else frames
        return denormalize(kept, transform.mean, transform.std)

    def sources_of(self, patch: int) -> list[tuple[int, float]]:
        """Index in the file and time of each frame of a temporal patch; the last frame may repeat."""
        if not isinstance(self.planned, PlannedVideo):
            return []
        last = len(self.planned.frame_indices) - 1
        first = patch * self.frames_per_patch
        kept = [min(i, last) for i in range(first, first + self.frames_per_patch)]
        return [(self.planned.frame_indices[i], self.planned.frame_times_s[i]) for i in kept]


def shapes_by_image(
    conversation: Conversation, sizes: Sequence[tuple[int, int]]
) -> tuple[list[list[Drawn]], list[str]]:
    """Boxes and points of a conversation in pixels of its pictures.

    Those that the record states, and those that stand as JSON in an answer's text, which are taken to
    belong to the last picture before it.

    Args:
        conversation: the sample.
        sizes: height and width of each picture as the model gets it.

    Returns:
        What to draw on each picture, and what cannot be drawn, in words.
    """
    drawn: list[list[Drawn]] = [[] for _ in sizes]
    notes: list[str] = []
    for item, image, from_text in _groundings(conversation, notes):
        shape = item.shape
        if isinstance(shape, TimeSpan):
            notes.append(f"{clock(shape.start_s)} to {clock(shape.end_s)}: {item.label}")
        elif not isinstance(shape, Box | Point):
            notes.append(f"3-D box, not drawn: {item.label}")
        elif not 0 <= image < len(sizes):
            notes.append(f"{shape.name} belongs to image {image + 1}, which is not there")
        else:
            height, width = sizes[image]
            view = shape.space.on
            if isinstance(view, Crop) and view.root.image == image:
                view = view.root  # the picture itself, not what was cut from it, is shown
            try:
                pixels = shape.to(ResizedPixels(width, height, on=view))
            except DataError as error:
                notes.append(str(error))
                continue
            drawn[image].append(
                Drawn(coordinates=pixels.coordinates, label=item.label, from_text=from_text)
            )
    return drawn, notes


def written_time(text: str) -> str | None:
    """The timestamp that a text ends with, such as `<1.5 seconds>`."""
    found = _TIMESTAMP.search(text)
    return found[0] if found else None


def seconds_of(written: str | None) -> float | None:
    """The time that a timestamp states, `<1.5 seconds>` or `<00:01:23.5>`, if it can be read."""
    found = _TIME.search(written or "")
    if not found:
        return None
    return sum(
        float(number) * 60**i for i, number in enumerate(reversed(found[0].split(":"))) if number
    )


_TIMESTAMP = re.compile(r"<[^<>|\n]+>$")
_TIME = re.compile(r"\d+(?::\d+)*(?:\.\d+)?")
_HOLDS_SHAPES = re.compile(r'"(?:bbox_2d|point_2d)"')


def _groundings(
    conversation: Conversation, notes: list[str]
) -> Iterator[tuple[Grounding, int, bool]]:
    """Shapes, the picture of each, and whether it was read from text."""
    images = 0
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, ImagePart):
                images += 1
            elif isinstance(part, GroundingPart):
                for item in part.items:
                    yield item, part.image, False
            elif (
                isinstance(part, TextPart)
                and message.role == "assistant"
                and _HOLDS_SHAPES.search(part.text)
            ):
                try:
                    found = parse_groundings(part.text)
                except DataError as error:
                    notes.append(f"boxes in the text cannot be read: {error}")
                    continue
                for item in found:
                    yield item, max(images - 1, 0), True
