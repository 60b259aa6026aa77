"""Video files opened frame by frame, by readers that know when each frame is shown."""

from __future__ import annotations

import importlib
import logging
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmkit.errors import MediaError

logger = logging.getLogger(__name__)

TICK_S = 0.002
"""Slack for timestamps, which containers round (Matroska to 1 ms)."""


class FrameReader(Protocol):
    """An opened video file.

    Frames are counted in the order, and stand in the orientation, in which a player shows them. Times
    come from the timestamps of frames; the header's frame rate and frame count are not believed.

    Attributes:
        pts_s: when each frame is shown, in seconds since the first frame; (num_frames,), increasing.
    """

    pts_s: NDArray[np.float64]

    @abstractmethod
    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode frames.

        Args:
            indices: in any order, counted from 0.

        Returns:
            RGB, (len(indices), height, width, 3).

        Raises:
            MediaError: a frame cannot be decoded; names the file.
        """

    @property
    def num_frames(self) -> int:
        """Frames of the file."""
        return len(self.pts_s)

    @property
    def duration_s(self) -> float:
        """When the last frame ends; it lasts as long as the others on average.

        Containers state how long it lasts, but FFmpeg versions read that differently.
        """
        last_s = float(self.pts_s[-1])
        return last_s + last_s / max(self.num_frames - 1, 1)


OpenReader = Callable[[Path], FrameReader]
"""A reader class, or anything else that opens a file; raises MediaError where it cannot."""


class DecordReader(FrameReader):
    """Reads with decord, exact where each keyframe starts afresh, as in most H.264 and VP9 files.

    decord has had no release since 2021. What it is known to read wrongly without an error is refused:
    containers without timestamps or index, damaged frames (it hands out their neighbours), and clips cut
    without re-encoding (it counts frames that the edit list hides, and mixes up the order of the rest).
    In files with open groups of pictures it can still be a few frames off; `PyAVReader` is not.
    """

    INEXACT_SUFFIXES = frozenset({".asf", ".m2ts", ".mpeg", ".mpg", ".mts", ".ts", ".vob", ".wmv"})

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        """Open `path`.

        Args:
            path: video file.
            num_threads: decoding threads; 0 lets decord choose. Loader workers are parallel already.

        Raises:
            MediaError: decord cannot read the file, or not correctly; names file and reason.
            ImportError: decord is not installed.
        """
        decord = _import("decord")
        self._path = _require_file(path)
        if path.suffix.lower() in self.INEXACT_SUFFIXES:
            raise self._error(f"it seeks inexactly in {path.suffix} files")
        # Its errors share no base class; an assertion fires where it counts no frames.
        self._failures = (
            decord.DECORDError,
            decord.DECORDLimitReachedError,
            RuntimeError,
            AssertionError,
        )
        try:
            self._reader = decord.VideoReader(
                str(path),
                num_threads=num_threads,
                fault_tol=1e-6,  # the accepted share of damaged frames; 0 accepts all of them
            )
            # (frames, start and end), relative to the first frame that is not hidden
            times_s = self._reader.get_frame_timestamp(list(range(len(self._reader))))
        except self._failures as error:
            raise self._error(_first_line(error)) from error
        # decord rounds to float32; four decimals restore times such as 10.45 s.
        pts_s = times_s[:, 0].astype(np.float64).round(4)
        if np.abs(pts_s).max() > 1e9:
            raise self._error("frames without timestamps")
        if pts_s[0] < -TICK_S:
            raise self._error("an edit list hides the first frames, which it counts")
        if (np.diff(pts_s) <= 0).any():
            raise self._error("timestamps that do not increase")
        self.pts_s = pts_s - pts_s[0]

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        try:
            frames: NDArray[np.uint8] = self._reader.get_batch(list(indices)).asnumpy()
        except self._failures as error:
            raise self._error(_first_line(error)) from error
        return frames

    def _error(self, reason: str) -> MediaError:
        return MediaError(f"video {self._path}: decord cannot read it ({reason})")


class _Packet(NamedTuple):
    """Where a compressed frame stands in time, in ticks of its stream."""

    pts: int
    dts: int
    is_keyframe: bool
    is_shown: bool  # False: an edit list hides the frame, though others are decoded from it


class PyAVReader(FrameReader):
    """Reads with PyAV, which carries a current FFmpeg. Of a truncated file it reads what is there."""

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        """Open `path`.

        Args:
            path: video file.
            num_threads: decoding threads; 0 lets FFmpeg choose. Loader workers are parallel already.

        Raises:
            MediaError: FFmpeg cannot read the file, or it holds no video; names file and reason.
            ImportError: PyAV is not installed.
        """
        av = _import("av")
        self._path = _require_file(path)
        self._failure = av.FFmpegError
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.best("video")
            if self._stream is None:
                raise self._error("no video stream")
            self._stream.thread_type = "SLICE"  # "AUTO" can hang where torchvision is imported
            self._stream.codec_context.thread_count = num_threads
            packets = self._index()
        except self._failure as error:
            raise self._error(_first_line(error)) from error

        self._shown = [packet.pts for packet in packets if packet.is_shown]
        if not self._shown:
            raise self._error("no frames with timestamps")
        self._keyframes = [packet for packet in packets if packet.is_keyframe] or packets[:1]
        tick_s = self._stream.time_base  # a fraction
        ticks = np.array(self._shown) - self._shown[0]
        self.pts_s = ticks * tick_s.numerator / tick_s.denominator
        self._frames: Iterator[Any] = iter(())
        self._position: int | None = None  # pts of the last frame taken from `_frames`

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        try:
            frames = {index: self._read(index) for index in sorted(set(indices))}
        except self._failure as error:
            raise self._error(_first_line(error)) from error
        return np.stack([frames[index] for index in indices])

    def _read(self, index: int) -> NDArray[np.uint8]:
        """Decode on to a frame, or from the keyframe before it where that is nearer."""
        wanted = self._shown[index]
        after = bisect_right(self._keyframes, wanted, key=lambda packet: packet.pts)
        nearest = self._keyframes[max(after - 1, 0)]
        for origin in (nearest, self._keyframes[0]):  # seeking without an index may land too late
            if self._position is None or not origin.pts <= self._position < wanted:
                # Containers are indexed by pts or by dts; the earlier never lands past the keyframe.
                self._container.seek(min(origin.pts, origin.dts), stream=self._stream)
                self._frames = self._decode()
            for frame in self._frames:
                self._position = frame.pts
                if frame.pts == wanted:
                    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                if frame.pts > wanted:
                    break
        raise self._error(f"frame {index} at {self.pts_s[index]:.2f} s cannot be decoded")

    def _decode(self) -> Iterator[Any]:
        """Frames from the current position on."""
        last: int | None = None
        for packet in self._intact_packets():
            for frame in packet.decode():
                if frame.pts is None or (last is not None and frame.pts <= last):
                    raise self._error("timestamps out of order; re-encode it, for example to mp4")
                last = frame.pts
                yield frame

    def _index(self) -> list[_Packet]:
        """All packets with a timestamp, in the order in which their frames are shown."""
        return sorted(
            _Packet(
                pts=packet.pts,
                dts=packet.pts if packet.dts is None else packet.dts,
                is_keyframe=packet.is_keyframe,
                is_shown=not packet.is_discard,
            )
            for packet in self._intact_packets()
            if packet.pts is not None
        )

    def _intact_packets(self) -> Iterator[Any]:
        return (p for p in self._container.demux(self._stream) if not p.is_corrupt)

    def _error(self, reason: str) -> MediaError:
        return MediaError(f"video {self._path}: PyAV cannot read it ({reason})")


def open_auto(path: Path, num_threads: int = 1) -> FrameReader:
    """Open with decord, and with PyAV where decord fails, now or later; the log says so.

    Args:
        path: video file.
        num_threads: decoding threads.

    Raises:
        MediaError: neither can read the file.
        ImportError: neither is installed.
    """
    _require_file(path)
    try:
        return _DecordThenPyAV(path, num_threads)
    except (MediaError, ImportError) as error:
        return _replace_decord(path, num_threads, error)


class _DecordThenPyAV(FrameReader):
    """A `DecordReader` that turns into a `PyAVReader` when a frame cannot be decoded."""

    def __init__(self, path: Path, num_threads: int) -> None:
        self._path, self._num_threads = path, num_threads
        self._reader: FrameReader = DecordReader(path, num_threads)
        self.pts_s = self._reader.pts_s

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        try:
            return self._reader.get(indices)
        except MediaError as error:
            if not isinstance(self._reader, DecordReader):
                raise
            other = _replace_decord(self._path, self._num_threads, error)
            if other.num_frames != self.num_frames:  # the indices would mean other frames
                raise
        self._reader = other
        return other.get(indices)


def _replace_decord(path: Path, num_threads: int, error: Exception) -> PyAVReader:
    """Open `path` with PyAV after decord failed with `error`."""
    try:
        reader = PyAVReader(path, num_threads)
    except ImportError:
        raise error from None
    _warn_once(f"{error}; reading with PyAV instead")
    return reader


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    logger.warning(message)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        raise ImportError(
            f"reading videos needs {name}: run `pip install {name}` ({error})"
        ) from error


def _require_file(path: Path) -> Path:
    if not path.exists():
        raise MediaError(f"video {path}: file not found")
    if not path.is_file():
        raise MediaError(f"video {path}: not a file")
    if not path.stat().st_size:
        raise MediaError(f"video {path}: file is empty")
    return path


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
