"""References to pictures and videos: data URLs, stretches of files, arrays, lists of frames."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vlmkit.data.media import FileRange, FrameSequence, ImageArray, ImageBlob, InMemory, data_url
from vlmkit.errors import MediaError, Reason

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 29, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def test_data_urls() -> None:
    content = png()
    payload = base64.b64encode(content).decode()
    wrapped = "\n".join(payload[at : at + 76] for at in range(0, len(payload), 76))
    for url in (
        f"data:image/png;base64,{payload}",
        f"data:;base64,{payload}",
        f"DATA:image/png;charset=x;BASE64,{wrapped}",
    ):
        assert data_url(url, "row 3").content == content
    picture = ImageBlob(data_url(f"data:image/png;base64,{payload}", "row 3"))
    assert (picture.name, picture.size()) == ("row 3", (13, 29))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:image/png;base64",
        "data:image/png,abc",
        "http://x/;base64,QUJD",
        "data:;base64,###",
        "data:;base64,QUJ",
        "data:;base64,é",
    ],
)
def test_unusable_data_urls_leave_their_content_out(url: str) -> None:
    with pytest.raises(MediaError, match="row 3") as raised:
        data_url(url, "row 3")
    assert raised.value.code == Reason.UNREADABLE
    assert "###" not in str(raised.value)


def test_an_empty_data_url_is_an_empty_picture() -> None:
    with pytest.raises(MediaError, match=r"row 3.*empty"):
        ImageBlob(data_url("data:;base64,", "row 3")).open()


def test_a_stretch_of_a_file(tmp_path: Path) -> None:
    content = png()
    path = tmp_path / "shard.tar"
    path.write_bytes(b"x" * 512 + content + b"y" * 99)
    picture = ImageBlob(FileRange(path, 512, len(content), "shard.tar:7.png"))
    assert np.array_equal(np.asarray(picture.open()), PIXELS)
    for offset, size, present in ((512, 10**15, len(content) + 99), (10**6, 5, 0)):
        with pytest.raises(MediaError, match=rf"7\.png.* ends after {present} of its {size} bytes"):
            FileRange(path, offset, size, "7.png").read()
    with pytest.raises(MediaError, match="not found") as raised:
        FileRange(tmp_path / "absent.tar", 0, 1, "7.png").read()
    assert raised.value.code == Reason.MISSING_FILE


def test_content_stays_out_of_messages() -> None:
    secret = InMemory(b"secret" * 1000, "row 3")
    assert "secret" not in repr(ImageBlob(secret))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5), dtype=np.uint8),
        np.zeros((4, 5, 4), dtype=np.uint8),
        np.zeros((4, 5, 3), dtype=np.float32),
    ],
)
def test_arrays_of_another_kind_are_mistakes_of_the_program(array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"give \(height, width, 3\) uint8") as raised:
        ImageArray(array)
    assert not isinstance(raised.value, MediaError)


def test_arrays_may_be_views() -> None:
    wide = np.arange(4 * 10 * 3, dtype=np.uint8).reshape(4, 10, 3)
    picture = ImageArray(wide[:, ::-2])
    assert picture.size() == (4, 5)
    assert np.array_equal(np.asarray(picture.open()), wide[:, ::-2])


@pytest.mark.parametrize(
    "times_s", [(0.0,), (0.0, 0.0), (1.0, 0.5), (0.0, float("nan")), (0.0, float("inf"))]
)
def test_frames_need_a_clock(times_s: tuple[float, ...]) -> None:
    picture = ImageArray(np.zeros((4, 6, 3), dtype=np.uint8))
    with pytest.raises(MediaError) as raised:
        FrameSequence((picture, picture), times_s)
    assert raised.value.code == Reason.NO_CLOCK


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_frames_at_no_rate(fps: float) -> None:
    with pytest.raises(MediaError, match="must be positive") as raised:
        FrameSequence.at_fps((), fps, "row 3")
    assert raised.value.code == Reason.NO_CLOCK
