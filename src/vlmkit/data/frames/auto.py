"""Videos read with whichever decoder can."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.base import FrameReader
from vlmkit.data.frames.container_reader import source_of
from vlmkit.data.frames.decord_reader import DecordReader
from vlmkit.data.frames.pyav_reader import PyAVReader
from vlmkit.data.frames.sequence_reader import FrameSequenceReader
from vlmkit.data.media import FrameSequence, InMemory, VideoBlob, VideoRef
from vlmkit.errors import MediaError

logger = logging.getLogger(__name__)


def open_auto(video: VideoRef, num_threads: int = 1) -> FrameReader:
    """Open with decord, and with PyAV where decord fails, now or later; the log says so.

    Args:
        video: a file, its bytes, or a list of frames.
        num_threads: decoding threads.

    Raises:
        MediaError: neither can read the video.
        ImportError: neither is installed.
    """
    if isinstance(video, FrameSequence):
        return FrameSequenceReader(video)
    source = source_of(video)
    if isinstance(source, bytes):
        video = VideoBlob(InMemory(source, video.name))  # fetched once for both
    try:
        return _DecordThenPyAV(video, num_threads)
    except (MediaError, ImportError) as error:
        return _replace_decord(video, num_threads, error)


class _DecordThenPyAV(FrameReader):
    """A `DecordReader` that turns into a `PyAVReader` when a frame cannot be decoded."""

    def __init__(self, video: VideoRef, num_threads: int) -> None:
        self._video, self._num_threads = video, num_threads
        self._reader: FrameReader = DecordReader(video, num_threads)
        self.pts_s = self._reader.pts_s

    @property
    def size(self) -> tuple[int, int]:
        """See `FrameReader.size`."""
        try:
            return self._reader.size
        except MediaError as error:
            return self._replaced(error).size

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        try:
            return self._reader.get(indices)
        except MediaError as error:
            return self._replaced(error).get(indices)

    def _replaced(self, error: MediaError) -> FrameReader:
        if not isinstance(self._reader, DecordReader):
            raise error
        other = _replace_decord(self._video, self._num_threads, error)
        if other.num_frames != self.num_frames:  # the indices would mean other frames
            raise error
        self._reader = other
        return other


def _replace_decord(video: VideoRef, num_threads: int, error: Exception) -> FrameReader:
    """Open `video` with PyAV after decord failed with `error`."""
    try:
        reader: FrameReader = PyAVReader(video, num_threads)
    except ImportError:
        raise error from None
    _warn_once(f"{error}; reading with PyAV instead")
    return reader


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    logger.warning(message)
