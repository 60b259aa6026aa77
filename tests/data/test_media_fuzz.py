"""Damaged media end in a result or in an error that says why: nothing else is raised, nothing hangs.

`make test MARKERS=slow ARGS=tests/data/test_media_fuzz.py` tries about twenty times as many files. A failure
names its seed: `damaged(content, seed)` makes the file again.
"""

from __future__ import annotations

import io
import resource
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.clips import Clips
from tests.data.mutations import damaged, mended_checksums
from vlmkit.data import image_decode
from vlmkit.data.frames.decode_process import Guarded
from vlmkit.data.frames.reader import OpenReader, PyAVReader, open_auto
from vlmkit.data.image import ImageTransform
from vlmkit.data.media import (
    FileRange,
    FrameSequence,
    ImageBlob,
    ImageFile,
    ImageRef,
    InMemory,
    VideoBlob,
    VideoFile,
    data_url,
)
from vlmkit.data.video import VideoTransform
from vlmkit.errors import DataError, Reason

TIME_LIMIT_S = 10.0
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:UserWarning:PIL.*", "ignore::PIL.Image.DecompressionBombWarning"
)
amounts = pytest.mark.parametrize(
    "amount", [1, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"]
)


def largest_memory() -> int:
    """The most that this process ever held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 48, 3), dtype=np.uint8)
    pixels[:, :20] //= 8
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    several: dict[str, Any] = {
        "save_all": True,
        "append_images": [picture(seed=1), picture(seed=2)],
    }
    grey = np.random.default_rng(0).integers(0, 65_536, (30, 30), dtype=np.uint16)
    return {
        "jpeg": encoded(picture(), "JPEG", exif=exif),
        "progressive jpeg": encoded(picture(), "JPEG", progressive=True),
        "cmyk jpeg": encoded(picture("CMYK"), "JPEG"),
        "png": encoded(picture(), "PNG", exif=exif),
        "palette png": encoded(picture("P"), "PNG", transparency=3),
        "16-bit png": encoded(Image.fromarray(grey), "PNG"),
        "animated png": encoded(picture(), "PNG", **several),
        "webp": encoded(picture(), "WEBP", exif=exif),
        "lossless webp": encoded(picture("RGBA"), "WEBP", lossless=True),
        "animated webp": encoded(picture(), "WEBP", **several),
        "gif": encoded(picture(), "GIF"),
        "animated gif": encoded(picture(), "GIF", **several),
        "tiff": encoded(picture(), "TIFF", compression="tiff_lzw", exif=exif),
        "avif": encoded(picture(), "AVIF"),
    }


def outcome(attempt: Callable[[], Any], about: str) -> str:
    """`ok`, or the code of the error of the data; anything else is a failure that names its seed."""
    start = time.monotonic()
    try:
        attempt()
        found = "ok"
    except DataError as error:
        found = str(Reason(error.code))
    except Exception as error:
        raise AssertionError(f"{about}: {error!r}") from error
    assert time.monotonic() - start < 3 * TIME_LIMIT_S, about
    return found


@amounts
@pytest.mark.parametrize("name", sorted(pictures()))
def test_damaged_pictures(name: str, amount: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of pixels is lowered, so that memory shows whether it is kept."""
    monkeypatch.setattr(image_decode, "MAX_SOURCE_PIXELS", 4_000_000)
    content = pictures()[name]
    transform = ImageTransform(max_pixels=64 * 32**2)
    before = largest_memory()
    outcomes: Counter[str] = Counter()
    for seed in range(150 * amount):
        changed = damaged(content, seed)
        if "png" in name and seed % 2:
            changed = mended_checksums(changed)
        image = ImageBlob(InMemory(changed, name))

        def attempt(image: ImageBlob = image) -> None:
            opened = image.open()
            assert opened.mode == "RGB"
            assert image.size() == (opened.height, opened.width)
            if opened.width * opened.height < 10_000:
                transform.plan(image).patches()

        outcomes[outcome(attempt, f"{name}, seed {seed}")] += 1
    assert outcomes["unreadable"]
    assert outcomes.keys() <= {"ok", "unreadable", "too_large", "bad_shape"}
    assert largest_memory() - before < 300 << 20  # measured: 39 MB


@amounts
@pytest.mark.parametrize("open_file", [open_auto, PyAVReader])
@pytest.mark.parametrize("name", ["constant.mp4", "vp9.webm", "hevc.mp4", "stream.ts"])
def test_damaged_videos(name: str, open_file: OpenReader, amount: int, clips: Clips) -> None:
    content = clips(name).read_bytes()
    guard = Guarded(
        partial(open_file, num_threads=1), time_limit_s=TIME_LIMIT_S, memory_limit_gib=3
    )
    transform = VideoTransform(max_pixels=16 * 32**2 * 8, open_reader=guard)
    before = largest_memory()
    outcomes: Counter[str] = Counter()
    for seed in range(60 * amount):
        video = VideoBlob(InMemory(damaged(content, seed), f"{name}, seed {seed}"))

        def attempt(video: VideoBlob = video) -> None:
            reader = guard(video)
            assert reader.pts_s[0] == 0
            assert (np.diff(reader.pts_s) > 0).all()
            assert np.isfinite(reader.duration_s)
            some = sorted({0, reader.num_frames // 2, reader.num_frames - 1})
            assert reader.get(some).shape == (len(some), *reader.size, 3)
            transform.plan(video).patches()

        outcomes[outcome(attempt, video.name)] += 1
    guard.close()
    assert outcomes["ok"]
    assert outcomes["unreadable"]
    # decord crashes over a few files in a hundred; without its process, training would end there.
    assert outcomes["timeout"] + outcomes["decoder_died"] <= 0.1 * outcomes.total()
    assert largest_memory() - before < 300 << 20


@amounts
def test_records_that_name_nonsense(amount: int, tmp_path: Path) -> None:
    """References as a broken dataset would hold them: paths, stretches of shards, URLs, lists of frames."""
    good = encoded(picture(), "PNG")
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"\0" * 100 + good + b"\0" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "unreadable.png").write_bytes(good)
    (tmp_path / "unreadable.png").chmod(0)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    paths = [
        *("", ".", "..", "folder", "folder/", "absent.png", "shard.tar", "shard.tar/x", "loop.png"),
        *("unreadable.png", "x" * 5000, "nul\0", "\udcff.png", "~/x.png", "http://host/x.mp4"),
        *("file:///etc/hostname", "concat:a|b", "pipe:0", "%d.png", "-", "/dev/null"),
    ]
    rng = np.random.default_rng(0)
    guard = Guarded(PyAVReader, time_limit_s=TIME_LIMIT_S)
    outcomes: Counter[str] = Counter()
    for path in paths:
        name = tmp_path / path
        outcomes[outcome(ImageFile(name).open, f"image {path!r}")] += 1
        outcomes[outcome(ImageFile(name).size, f"image {path!r}")] += 1
        outcomes[outcome(lambda name=name: guard(VideoFile(name)), f"video {path!r}")] += 1
    for number in range(200 * amount):
        offset, size = (int(v) for v in rng.integers(-5, 2 * shard.stat().st_size, 2))
        stretch = FileRange(shard, offset, size, "stretch")
        outcomes[outcome(ImageBlob(stretch).open, f"{offset}, {size}")] += 1

        letters = "data:image/png;base64,AAA=+/%é\n ;,"
        url = "".join(rng.choice(list(letters), rng.integers(0, 40)))
        url = ("data:;base64," + url) if number % 2 else url
        attempt = lambda url=url: ImageBlob(data_url(url, "url")).open()  # noqa: E731
        outcomes[outcome(attempt, repr(url))] += 1

        frames: list[ImageRef] = [
            ImageBlob(InMemory(good if rng.random() < 0.9 else damaged(good, number), "frame"))
            for _ in range(rng.integers(0, 5))
        ]
        times = rng.choice([0.0, 0.5, 1.0, 2.0, -1.0, np.nan, np.inf], rng.integers(0, 5))
        if number % 2:
            times = np.arange(len(frames)) / 2

        def open_frames(frames: list[ImageRef] = frames, times: Any = times) -> None:
            reader = guard(FrameSequence(tuple(frames), tuple(times.tolist())))
            assert reader.get(range(reader.num_frames)).shape[1:] == (*reader.size, 3)

        outcomes[outcome(open_frames, f"frames, {number}")] += 1
    guard.close()
    for code in ("ok", "missing_file", "unreadable", "no_frames", "no_clock"):
        assert outcomes[code], code


def test_the_same_seed_makes_the_same_damage() -> None:
    content = bytes(range(256)) * 8
    made = [damaged(content, seed) for seed in range(50)]
    assert made == [damaged(content, seed) for seed in range(50)]
    assert len(set(made)) == 50
    assert content not in made
