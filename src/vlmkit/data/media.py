"""Pictures and videos before they are opened: on disk, in a shard, in memory.

`image_decode.py` states what becomes of unusual pictures, `frames/reader.py` the same of videos.
"""

from __future__ import annotations

import base64
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmkit.data.image_decode import (
    MACHINE_ERRORS,
    MAX_SOURCE_PIXELS,
    decode,
    header_size,
)
from vlmkit.errors import MediaError, Reason

__all__ = [
    "MAX_SOURCE_PIXELS",
    "Blob",
    "FileRange",
    "FrameSequence",
    "ImageArray",
    "ImageBlob",
    "ImageFile",
    "ImageRef",
    "InMemory",
    "VideoBlob",
    "VideoFile",
    "VideoRef",
    "data_url",
]


class Blob(Protocol):
    """Bytes that can be fetched when they are needed.

    Attributes:
        name: for messages; never the content.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    def read(self) -> bytes:
        """Fetch the bytes.

        Raises:
            MediaError: they are not there.
        """
        ...


@dataclass(frozen=True)
class FileRange:
    """A stretch of a file, such as a member of a tar shard."""

    path: Path
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """See `Blob.read`."""
        try:
            with self.path.open("rb") as file:
                present = max(os.fstat(file.fileno()).st_size - self.offset, 0)
                if (
                    not 0 <= self.size <= present
                ):  # before memory is taken for what an index promises
                    raise MediaError(
                        f"{self.name}: {self.path} ends after {present} of its {self.size} bytes"
                    )
                file.seek(self.offset)
                return file.read(self.size)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MediaError(f"{self.name}: file not found", Reason.MISSING_FILE) from error
        except OSError as error:
            if error.errno in MACHINE_ERRORS:
                raise
            raise MediaError(f"{self.name}: cannot be read ({error})") from error


@dataclass(frozen=True)
class InMemory:
    """Bytes that are here already, as from a column of a Parquet file."""

    content: bytes
    name: str

    def read(self) -> bytes:
        """See `Blob.read`."""
        return self.content

    def __repr__(self) -> str:
        """Without the content, which would fill logs."""
        return f"InMemory({self.name}, {len(self.content)} bytes)"


def data_url(url: str, name: str) -> InMemory:
    """Decode `data:image/png;base64,...`.

    Raises:
        MediaError: it is not base64; the message leaves the content out.
    """
    header, comma, payload = url.partition(",")
    start, end = header[:5].lower(), header[-7:].lower()
    if not comma or start != "data:" or end != ";base64":
        raise MediaError(f"{name}: a data: URL must read data:<type>;base64,<content>")
    try:
        return InMemory(base64.b64decode("".join(payload.split()), validate=True), name)
    except ValueError as error:  # not base64, or not even ASCII
        raise MediaError(f"{name}: its data: URL is not base64 ({error})") from error


class ImageRef(Protocol):
    """A picture that can be opened when it is needed.

    Attributes:
        name: for messages.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    def size(self) -> tuple[int, int]:
        """Height and width as shown (after EXIF rotation), from the header alone.

        Raises:
            MediaError: as `open`.
        """
        ...

    def open(self) -> Image.Image:
        """Decode to RGB, as shown.

        Raises:
            MediaError: missing, truncated, too large or not a picture; names the source.
        """
        ...


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk."""

    path: Path

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path)

    def size(self) -> tuple[int, int]:
        """See `ImageRef.size`."""
        return header_size(self.path, self.name)

    def open(self) -> Image.Image:
        """See `ImageRef.open`."""
        return decode(self.path, self.name)


@dataclass(frozen=True)
class ImageBlob:
    """A picture inside something else: a shard, a column, a data: URL."""

    blob: Blob

    @property
    def name(self) -> str:
        """For messages."""
        return self.blob.name

    def size(self) -> tuple[int, int]:
        """See `ImageRef.size`."""
        return header_size(io.BytesIO(self.blob.read()), self.name)

    def open(self) -> Image.Image:
        """See `ImageRef.open`."""
        return decode(io.BytesIO(self.blob.read()), self.name)


@dataclass(frozen=True, eq=False)
class ImageArray:
    """A picture in memory: (height, width, 3) uint8.

    Raises:
        ValueError: the pixels are of another shape or type.
        MediaError: there are no pixels.
    """

    pixels: NDArray[np.uint8]
    name: str = "picture in memory"

    def __post_init__(self) -> None:
        """Refuse what PIL would take for another kind of picture."""
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
            raise ValueError(
                f"{self.name}: pixels are {shape} {dtype}; give (height, width, 3) uint8"
            )
        if not self.pixels.size:
            raise MediaError(
                f"{self.name}: {shape[0]}x{shape[1]} (height x width)", Reason.BAD_SHAPE
            )

    def size(self) -> tuple[int, int]:
        """See `ImageRef.size`."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def open(self) -> Image.Image:
        """See `ImageRef.open`."""
        return Image.fromarray(self.pixels)


@dataclass(frozen=True)
class VideoFile:
    """A video on disk."""

    path: Path

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path)


@dataclass(frozen=True)
class VideoBlob:
    """A video inside something else: a shard, a data: URL."""

    blob: Blob

    @property
    def name(self) -> str:
        """For messages."""
        return self.blob.name


@dataclass(frozen=True)
class FrameSequence:
    """A video as a list of pictures. Their times must be known: nothing is assumed.

    Args:
        frames: in order.
        times_s: when each is shown, increasing; the first need not be 0.
        name: for messages.

    Raises:
        MediaError: the times are missing, do not increase, or differ in number from the frames.
    """

    frames: tuple[ImageRef, ...]
    times_s: tuple[float, ...]
    name: str = "list of frames"

    def __post_init__(self) -> None:
        """Refuse frames without a clock."""
        if len(self.frames) != len(self.times_s):
            raise MediaError(
                f"{self.name}: {len(self.frames)} frames have {len(self.times_s)} times; give one per "
                "frame, or the fps at which they were taken",
                Reason.NO_CLOCK,
            )
        steps = zip(self.times_s, self.times_s[1:], strict=False)
        increase = all(earlier < later for earlier, later in steps)
        if not increase or not all(map(math.isfinite, self.times_s)):
            raise MediaError(
                f"{self.name}: the times of its frames do not increase", Reason.NO_CLOCK
            )

    @classmethod
    def at_fps(cls, frames: tuple[ImageRef, ...], fps: float, name: str) -> FrameSequence:
        """Frames taken at a steady rate, the first at 0 s."""
        if not 0 < fps < math.inf:
            raise MediaError(f"{name}: fps is {fps}; it must be positive", Reason.NO_CLOCK)
        return cls(frames, tuple(i / fps for i in range(len(frames))), name)


VideoRef = VideoFile | VideoBlob | FrameSequence
