"""What a dataset yields: conversations of text, images and videos."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlmkit.errors import MediaError


class ImageRef(Protocol):
    """A picture that can be opened when it is needed."""

    def open(self) -> Image.Image:
        """Decode to RGB.

        Raises:
            MediaError: missing, truncated or not a picture; names the source.
        """
        ...


@dataclass(frozen=True)
class ImagePart:
    """An image in a message."""

    image: ImageRef


@dataclass(frozen=True)
class VideoPart:
    """A stretch of a video file in a message.

    `start_s` and `end_s` cut the stretch; None means the file's own beginning or end.
    """

    path: Path
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class TextPart:
    """Text in a message."""

    text: str


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. Assistant turns are scored unless `scored` says otherwise."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]
    scored: bool | None = None

    @property
    def is_scored(self) -> bool:
        """Whether the loss counts this turn."""
        return self.role == "assistant" if self.scored is None else self.scored

    @property
    def text(self) -> str:
        """The turn's text, without its media."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A sample before processing.

    `key` is a stable integer from which anything random about the sample is derived.
    """

    messages: tuple[Message, ...]
    source: str = ""
    key: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """Text of the last turn if it is the assistant's, else nothing."""
        last = self.messages[-1]
        return last.text if last.role == "assistant" else ""

    @property
    def question(self) -> str:
        """Text of the last turn that is the user's."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")

    def as_prompt(self) -> Conversation:
        """The conversation without its last assistant turn."""
        return replace(self, messages=self.messages[:-1]) if self.answer else self


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk."""

    path: Path

    def open(self) -> Image.Image:
        """See `ImageRef.open`."""
        return _decode(self.path, str(self.path))


@dataclass(frozen=True)
class ImageArray:
    """A picture in memory: (height, width, 3) uint8."""

    pixels: NDArray[np.uint8]

    def open(self) -> Image.Image:
        """See `ImageRef.open`."""
        return Image.fromarray(self.pixels)


def _decode(source: Path, name: str) -> Image.Image:
    try:
        with Image.open(source) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise MediaError(f"image {name}: file not found") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"image {name}: cannot be decoded ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Transparent pictures on white; 16-bit grey scaled to 8 bits, where PIL would clip."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
