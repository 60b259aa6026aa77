"""Unusual pictures: what becomes of each, and that the header tells the size before they are decoded."""

from __future__ import annotations

import errno
import io
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from vlmkit.data.media import (
    MAX_SOURCE_PIXELS,
    FileRange,
    ImageArray,
    ImageBlob,
    ImageFile,
    InMemory,
)
from vlmkit.errors import MediaError, Reason

ORIENTATION = 0x0112
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16")
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
WITH_ORIENTATION = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF")


def noise(height: int = 13, width: int = 29, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(height * width)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65_536, (height, width), dtype=np.uint16))
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def blob(content: bytes, name: str = "shard.tar:7.jpg") -> ImageBlob:
    return ImageBlob(InMemory(content, name))


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(blob(content).open())


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        parts += [struct.pack(">I", len(content)), kind, content]
        parts += [struct.pack(">I", zlib.crc32(kind + content))]
    return b"".join(parts)


def header(height: int, width: int) -> tuple[bytes, bytes]:
    """The first chunk of a grey PNG."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)


def refused(content: bytes, match: str = "") -> Reason:
    """The code of the error that opening raises."""
    with pytest.raises(MediaError, match=rf"shard\.tar:7\.jpg.*{match}") as raised:
        blob(content).open()
    return raised.value.code


@pytest.mark.parametrize("format", FORMATS)
def test_the_header_tells_the_size_in_every_mode_and_orientation(format: str) -> None:
    modes = []
    for mode in MODES:
        try:
            encoded(noise(mode=mode), format)
        except (OSError, ValueError):
            continue  # the format has no such mode
        modes.append(mode)
        for orientation in range(9):
            options = {"exif": turned(orientation)} if orientation else {}
            picture = blob(encoded(noise(mode=mode), format, **options))
            opened = picture.open()
            assert opened.mode == "RGB"
            assert picture.size() == (opened.height, opened.width)
            lies = orientation >= 5 and format in WITH_ORIENTATION
            assert picture.size() == ((29, 13) if lies else (13, 29))
    assert {"L", "RGB"} <= set(modes)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_all_orientations_stand_upright(format: str) -> None:
    upright = noise()
    as_stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    options = {"lossless": True} if format == "WEBP" else {}
    for orientation, turn in as_stored.items():
        stored = upright if turn is None else upright.transpose(turn)
        content = encoded(stored, format, exif=turned(orientation), **options)
        assert np.array_equal(pixels(content), np.asarray(upright)), orientation


def test_an_orientation_behind_the_pixels_of_a_png() -> None:
    exif = turned(6).tobytes().removeprefix(b"Exif\0\0")
    rows = zlib.compress(b"\0" * 5 * 4)
    picture = blob(png(header(5, 3), (b"IDAT", rows), (b"eXIf", exif), (b"IEND", b"")))
    assert picture.size() == (3, 5)
    assert picture.open().size == (5, 3)


def test_an_orientation_in_xmp() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="8"/></x:xmpmeta>'
    picture = blob(encoded(noise(), "JPEG", xmp=xmp))
    assert picture.size() == (29, 13)
    assert picture.open().size == (13, 29)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_counts_as_none() -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", turned(6).tobytes()[:-4]):
        picture = blob(encoded(noise(), "JPEG", exif=exif))
        opened = picture.open()
        assert picture.size() == (opened.height, opened.width)
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    assert blob(encoded(noise(), "JPEG", exif=exif)).size() == (13, 29)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_the_size_is_found_without_decoding(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = blob(encoded(noise(200, 300), format))

    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    for base in (
        Image.Image,
        *Image.Image.__subclasses__(),
        type(Image.open(io.BytesIO(picture.blob.read()))),
    ):
        monkeypatch.setattr(base, "load", load)
    assert picture.size() == (200, 300)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    side = 50_000
    row = b"\0" * (side + 1)
    squeezed = zlib.compressobj(9)
    rows = b"".join(squeezed.compress(row) for _ in range(200)) + squeezed.flush()
    content = png(header(side, side), (b"IDAT", rows), (b"IEND", b""))
    assert len(content) < 100_000
    start = time.monotonic()
    assert refused(content, "pixels") == Reason.TOO_LARGE
    with pytest.raises(MediaError) as raised:
        blob(content).size()
    assert raised.value.code == Reason.TOO_LARGE
    assert time.monotonic() - start < 1


def test_the_largest_picture_is_our_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL's limit may be lifted by whoever shares the program."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    over = MAX_SOURCE_PIXELS // 10_000 + 1
    assert refused(png(header(10_000, over), (b"IDAT", b""))) == Reason.TOO_LARGE
    assert blob(png(header(10_000, over - 1), (b"IDAT", b""))).size() == (10_000, over - 1)


@pytest.mark.parametrize("size", [(8, 100_000), (100_000, 8)])
def test_a_side_of_100_000_pixels(size: tuple[int, int]) -> None:
    picture = blob(encoded(Image.new("L", size[::-1], 77), "PNG"))
    assert picture.size() == size
    opened = picture.open()
    assert opened.size == size[::-1]
    assert opened.getpixel((7, 7)) == (77, 77, 77)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_truncated_picture_is_an_error_never_half_a_picture(format: str) -> None:
    whole = encoded(noise(100, 100), format)
    for share in (0.05, 0.3, 0.6, 0.9, 0.99):
        assert refused(whole[: int(len(whole) * share)]) == Reason.UNREADABLE
    progressive = encoded(noise(100, 100), "JPEG", progressive=True)
    assert refused(progressive[: len(progressive) // 2], "truncated") == Reason.UNREADABLE


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no picture at all\n" * 9, "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "."),
        (b"\xff\xd8\xff", "."),
        (b"GIF89a", "."),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"\0\0\0\x1cftypavif", "."),
    ],
)
def test_what_is_no_picture(content: bytes, reason: str, tmp_path: Path) -> None:
    assert refused(content, reason) == Reason.UNREADABLE
    (tmp_path / "x.png").write_bytes(content)
    for ask in (ImageFile(tmp_path / "x.png").size, ImageFile(tmp_path / "x.png").open):
        with pytest.raises(MediaError, match=rf"x\.png.*{reason}"):
            ask()


def test_a_picture_without_pixels() -> None:
    for size in ((0, 5), (5, 0)):
        assert refused(png(header(*size), (b"IDAT", b""), (b"IEND", b""))) == Reason.UNREADABLE
        with pytest.raises(MediaError, match="0") as raised:
            ImageArray(np.zeros((*size, 3), dtype=np.uint8))
        assert raised.value.code == Reason.BAD_SHAPE


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(MediaError, match="not a file"):
        ImageFile(tmp_path / "pipe.png").size()


def test_a_wrong_extension_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(noise(), "PNG"))
    assert np.array_equal(np.asarray(ImageFile(tmp_path / "x.jpg").open()), np.asarray(noise()))


@pytest.mark.parametrize("path", ["absent.png", "file/inside.png", "x" * 300, "nul\0.png", "."])
def test_paths_that_cannot_be_pictures(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    picture = ImageFile(tmp_path / path)
    for ask in (picture.size, picture.open):
        with pytest.raises(MediaError) as raised:
            ask()
        missing = path in ("absent.png", "file/inside.png")
        assert raised.value.code == (Reason.MISSING_FILE if missing else Reason.UNREADABLE)


def test_a_machine_at_its_end_is_no_fault_of_the_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="Too many"):
        ImageFile(tmp_path / "x.png").open()
    with pytest.raises(OSError, match="Too many"):
        FileRange(tmp_path / "x.tar", 0, 1, "x").read()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF", "MPO"])
def test_of_several_pictures_the_first_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert blob(content).size() == (10, 20)
    red = pixels(content).astype(int).mean(axis=(0, 1))
    assert red == pytest.approx([255, 0, 0], abs=6)  # measured 4 for AVIF, 1 for MPO, else 0


def test_cmyk_is_converted_by_formula() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert pixels(encoded(red, "JPEG")).mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=3)
    assert pixels(encoded(red, "TIFF")).mean(axis=(0, 1)).tolist() == [255, 0, 0]


def test_profiles_are_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with_profile = encoded(noise(), "PNG", icc_profile=profile)
    assert np.array_equal(pixels(with_profile), np.asarray(noise()))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_scaled_not_clipped(format: str) -> None:
    levels = np.array([[0, 128, 129, 257, 32_768, 65_535] * 4] * 8, dtype=np.uint16)
    expected = np.round(levels / 257).astype(np.uint8)
    content = encoded(Image.fromarray(levels), format)
    assert np.array_equal(pixels(content)[..., 0], expected)


def test_numbers_without_an_agreed_range_are_refused() -> None:
    unbounded = Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32))
    assert refused(encoded(unbounded, "TIFF"), "beyond 16 bits") == Reason.UNREADABLE
    fractions = Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32))
    assert refused(encoded(fractions, "TIFF"), "floating-point") == Reason.UNREADABLE


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert pixels(encoded(half, "PNG"))[0, 0].tolist() == [255, 127, 127]
    grey = Image.new("LA", (4, 4), (0, 0))
    assert pixels(encoded(grey, "PNG"))[0, 0].tolist() == [255, 255, 255]

    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixels(encoded(palette, "PNG"))[0, 0].tolist() == [10, 20, 30]
    assert pixels(encoded(palette, "PNG", transparency=1))[0, 0].tolist() == [255, 255, 255]
    assert pixels(encoded(palette, "GIF", transparency=1))[0, 0].tolist() == [255, 255, 255]
    some = encoded(palette, "PNG", transparency=b"\xff\x80")
    assert pixels(some)[0, 0].tolist() == [132, 137, 142]

    colour_key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert pixels(encoded(colour_key, "PNG", transparency=(1, 2, 3))).min() == 255
    assert pixels(encoded(colour_key, "PNG", transparency=(9, 9, 9)))[0, 0].tolist() == [1, 2, 3]


def test_one_bit() -> None:
    checks = Image.fromarray(np.indices((6, 6)).sum(0) % 2 == 0)
    assert checks.mode == "1"
    for format in ("PNG", "TIFF", "BMP", "GIF", "PPM"):
        shown = pixels(encoded(checks, format))
        assert np.array_equal(shown[..., 0], np.asarray(checks) * 255)
