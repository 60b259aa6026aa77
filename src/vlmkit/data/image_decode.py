"""Pictures decoded to RGB as they are shown, and their size from the header alone.

| picture | result |
|---|---|
| JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM | recognised by content, whatever the extension |
| anything else: EPS, PSD, icons, text, ... | `unreadable` |
| an empty file, a side of 0 pixels | `unreadable` |
| truncated | `unreadable`, never half a picture (PIL's `LOAD_TRUNCATED_IMAGES`, if set, breaks this) |
| damaged inside, but complete | as the decoder mends it, for most formats cannot tell |
| more than `MAX_SOURCE_PIXELS` pixels, whatever the file's size | `too_large`, before pixels are decoded |
| a side of 100,000 pixels | decoded; too unequal sides are refused when it is resized |
| animated GIF, WebP, APNG, AVIF | the first frame |
| several pictures (MPO of stereo cameras, pages of a TIFF) | the first |
| EXIF or XMP orientation | all eight are applied, to the size too; a broken EXIF block counts as none |
| transparency: alpha, palette entries, a colour key | laid on white |
| grey and palette, 1 to 8 bits; LA, LAB, YCbCr | converted by PIL |
| 16-bit grey | scaled to 8 bits, where PIL would clip; 16-bit colour: PIL keeps the high bytes |
| 32-bit integers | read as 16 bits; beyond them `unreadable`, like floating point: no agreed range |
| CMYK JPEG | converted by PIL's formula, not by the profile, so that colours are somewhat too strong |
| ICC profile | ignored, as the published processor does: numbers are taken for sRGB |
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from vlmkit.errors import MediaError, Reason

MAX_SOURCE_PIXELS = 178_956_970
"""Pixels of a picture, or of a frame, beyond which it is not decoded: PIL's own limit for decompression
bombs. It stands here and in no setting, for it guards memory and says nothing about training: what is
kept of a picture is decided by the pixel budgets. In RGB such a picture takes 0.5 GB, and resizing it
four times that for a while."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is tried. Others can have side effects: EPS files are programs, which Ghostscript would execute."""

MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Numbers of operating system errors that are no file's fault, and so must not lead to skipped samples."""

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_PIXELS = 1 << 22
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks in which an orientation can stand

Source = Path | io.BytesIO


def header_size(source: Source, name: str) -> tuple[int, int]:
    """Height and width as shown, without decoding pixels.

    Raises:
        MediaError: as `decode`, as far as the header tells.
    """
    with _opened(source, name) as image:
        width, height = image.size
        turned = _orientation(image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def decode(source: Source, name: str) -> Image.Image:
    """The picture in RGB, as shown.

    Raises:
        MediaError: missing, truncated, too large or not a picture; names it.
    """
    with _opened(source, name) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        return _to_rgb(image if turn is None else image.transpose(turn))


@contextmanager
def _opened(source: Source, name: str) -> Iterator[Image.Image]:
    """The picture with its header read. Whatever PIL's parsers trip over is the picture's fault."""
    if isinstance(source, Path) and os.path.exists(source) and not os.path.isfile(source):
        raise MediaError(f"image {name}: not a file")  # a pipe would never end
    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if height * width > MAX_SOURCE_PIXELS:
                raise Image.DecompressionBombError(
                    f"{height}x{width} (height x width) are more than {MAX_SOURCE_PIXELS} pixels"
                )
            yield image
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MediaError(f"image {name}: file not found", Reason.MISSING_FILE) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        reason = str(error) or "not enough memory"
        raise MediaError(f"image {name}: {reason}", Reason.TOO_LARGE) from error
    except Image.UnidentifiedImageError as error:
        reason = "empty, or not a picture of a known format"
        raise MediaError(f"image {name}: cannot be decoded ({reason})") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise
        reason = str(error) or type(error).__name__
        raise MediaError(f"image {name}: cannot be decoded ({reason})") from error


def _orientation(image: Image.Image) -> int:
    """How a camera was held, from 1 to 8; 1 needs no turning."""
    if image.format == "TIFF":
        return 1  # PIL turns these itself, and swaps their size on opening
    if isinstance(image, PngImageFile) and image.fp is not None and _metadata_follows(image.fp):
        image.load()  # rare
    try:
        # For a PNG without EXIF its own `getexif` would decode all pixels to look behind them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF: PIL's parser raises all kinds of errors
        return 1
    return orientation if isinstance(orientation, int) else 1


def _metadata_follows(file: IO[bytes]) -> bool:
    """Whether a PNG has metadata behind its pixels, where PIL sees it only after decoding."""
    position = file.tell()
    try:
        file.seek(8)
        behind = False
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if behind and kind in _PNG_METADATA:
                return True
            behind = behind or kind == b"IDAT"
            file.seek(length + 4, io.SEEK_CUR)  # the content and its checksum
        return False
    finally:
        file.seek(position)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Without transparency. Band by band, as a large picture four times over would fill the memory."""
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        band = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        result.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return result


def _from_16_bits(grey: NDArray[np.integer]) -> Image.Image:
    if grey.dtype.itemsize > 2 and not 0 <= grey.min() <= grey.max() <= 65_535:
        raise ValueError(f"pixels from {grey.min()} to {grey.max()} are beyond 16 bits")
    levels = ((np.arange(65_536) + 128) // 257).astype(np.uint8)
    return Image.fromarray(levels[grey]).convert("RGB")
