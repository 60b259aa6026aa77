"""Videos that are lists of pictures, opened by whatever reader is configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmkit.data.frames.reader import (
    DecordReader,
    FrameReader,
    FrameSequenceReader,
    PyAVReader,
    TorchCodecReader,
    open_auto,
)
from vlmkit.data.media import FrameSequence, ImageArray, ImageFile
from vlmkit.errors import MediaError, Reason


def frame_list(*sizes: tuple[int, int]) -> FrameSequence:
    pictures = tuple(
        ImageArray(np.full((*size, 3), 10 * index, dtype=np.uint8))
        for index, size in enumerate(sizes)
    )
    return FrameSequence(pictures, tuple(2.0 + index**2 for index in range(len(sizes))), "frames")


@pytest.mark.parametrize(
    "open_reader", [DecordReader, PyAVReader, TorchCodecReader, open_auto, FrameSequenceReader]
)
def test_every_reader_opens_a_list_of_frames(open_reader: Any) -> None:
    """Without the package that it needs for files."""
    reader: FrameReader = open_reader(frame_list(*[(20, 30)] * 4))
    assert isinstance(reader, FrameSequenceReader)
    assert reader.pts_s.tolist() == [0.0, 1.0, 4.0, 9.0]
    assert reader.size == (20, 30)
    assert reader.duration_s == 12.0
    assert reader.get([3, 1]).mean(axis=(1, 2, 3)).tolist() == [30.0, 10.0]


def test_frames_of_another_size_are_refused() -> None:
    reader = FrameSequenceReader(frame_list((20, 30), (20, 30), (30, 20)))
    assert reader.get([0, 1]).shape == (2, 20, 30, 3)
    with pytest.raises(MediaError, match=r"frame 2 is 30x20.* the first is 20x30") as raised:
        reader.get([1, 2])
    assert raised.value.code == Reason.BAD_SHAPE


def test_the_size_of_a_list_of_frames_comes_from_a_header(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "0.jpg", exif=exif)
    cut = (tmp_path / "0.jpg").read_bytes()[:-20]
    (tmp_path / "0.jpg").write_bytes(cut)
    reader = PyAVReader(FrameSequence((ImageFile(tmp_path / "0.jpg"),), (0.0,)))
    assert reader.size == (40, 30)
    with pytest.raises(MediaError, match=r"0\.jpg.*truncated"):
        reader.get([0])


def test_an_empty_list_of_frames_is_refused() -> None:
    with pytest.raises(MediaError, match="no frames") as raised:
        open_auto(FrameSequence((), ()))
    assert raised.value.code == Reason.NO_FRAMES
