"""Video files to patches: readers that know when each frame is shown, frame sampling, resizing."""

from __future__ import annotations

import importlib
import logging
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from vlmkit.batch import Grid
from vlmkit.data.image import fit_to_budget, normalize, patchify, resize
from vlmkit.errors import MediaError

logger = logging.getLogger(__name__)

_TICK_S = 0.002
"""Slack for timestamps, which containers round (Matroska to 1 ms)."""

_FRAMES_AT_ONCE = 16
"""Frames held at source resolution; an hour of 1080p would not fit in memory."""


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
    """Reads with decord, exact where each keyframe starts afresh, as in most H.264, HEVC and VP9 files.

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
        if pts_s[0] < -_TICK_S:
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


def sample_indices(
    num_frames: int, duration_s: float, *, fps: float, min_frames: int, max_frames: int
) -> list[int]:
    """Frames to keep: `fps` per second of the source, spread evenly over the frames with both ends.

    Args:
        num_frames: of the source.
        duration_s: of the source.
        fps: frames to keep per second.
        min_frames: keep at least as many, as far as the source has them.
        max_frames: keep at most as many.

    Raises:
        ValueError: the rate or the bounds are unusable.
    """
    if fps <= 0 or not 0 < min_frames <= max_frames:
        raise ValueError(
            f"fps is {fps}, min_frames is {min_frames} and max_frames is {max_frames}; "
            "set fps > 0 and 0 < min_frames <= max_frames"
        )
    kept = min(max(int(duration_s * fps), min_frames), max_frames, num_frames)
    indices: list[int] = np.linspace(0, num_frames - 1, kept).round().astype(int).tolist()
    return indices


def patch_times(times_s: Sequence[float], temporal_patch_size: int) -> tuple[float, ...]:
    """Time of each temporal patch: the mean of its first and last frame.

    The last frame counts again until the frames fill whole patches, as `patchify` repeats it.
    """
    padding = [times_s[-1]] * (-len(times_s) % temporal_patch_size)
    padded = [*times_s, *padding]
    return tuple(
        (padded[first] + padded[first + temporal_patch_size - 1]) / 2
        for first in range(0, len(padded), temporal_patch_size)
    )


def smart_resize_video(
    num_frames: int,
    height: int,
    width: int,
    *,
    factor: int,
    temporal_factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """Size of the frames of a video: `smart_resize` with one budget of pixels for all frames.

    Args:
        num_frames: kept frames.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        factor: side of a visual token in pixels (`patch_size * merge_size`).
        temporal_factor: frames of a temporal patch.
        min_pixels: smallest total area of all frames.
        max_pixels: largest total area of all frames.

    Returns:
        Height and width.

    Raises:
        MediaError: fewer frames than a temporal patch holds, or sides that `smart_resize` refuses.
        ValueError: the bounds are unusable.
    """
    if num_frames < temporal_factor:
        raise MediaError(
            f"{num_frames} frame(s) do not fill a temporal patch of {temporal_factor}; "
            "take a longer stretch, or use the frame as an image"
        )
    if 0 < min(height, width) < factor:
        enlarge = max(factor / height, factor / width)
        height, width = int(height * enlarge), int(width * enlarge)
    return fit_to_budget(
        height,
        width,
        factor=factor,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        num_frames=num_frames,
        num_padded_frames=round(num_frames / temporal_factor) * temporal_factor,
    )


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """A sampled video."""

    patches: Tensor  # (patches, patch_dim) float32
    grid: Grid
    times_s: tuple[float, ...]  # of each temporal patch, from the start of the stretch
    frame_indices: tuple[int, ...]  # in the file, of the kept frames


@dataclass(frozen=True, kw_only=True)
class VideoTransform:
    """Turns a video into patches and their times, as the published Qwen3-VL video processor does.

    Attributes:
        fps: frames to keep per second.
        min_frames: keep at least as many, as far as the file has them.
        max_frames: keep at most as many.
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames of a patch.
        merge_size: side, in patches, of the window that becomes one visual token.
        min_pixels: smallest total area of all resized frames.
        max_pixels: largest total area of all resized frames (12,288 visual tokens by default).
        mean: per channel, of pixel values between 0 and 1.
        std: per channel, of pixel values between 0 and 1.
        open_reader: opens a file; `open_auto`, `DecordReader`, `PyAVReader` or one of yours.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 4_096
    max_pixels: int = 25_165_824
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    open_reader: OpenReader = open_auto

    def __call__(
        self, path: Path, start_s: float | None = None, end_s: float | None = None
    ) -> VideoFrames:
        """Sample, resize, normalise and cut up a file or a stretch of it.

        Args:
            path: video file.
            start_s: where the stretch begins, in seconds since the first frame; None: there.
            end_s: where it ends, that frame excluded; None: with the file.

        Raises:
            MediaError: the file cannot be read, or the stretch is not in it; names file and reason.
        """
        path = Path(path)
        reader = self.open_reader(path)
        first, stop = _stretch(reader, path, start_s, end_s)
        ends_s = [*reader.pts_s[1:], reader.duration_s]
        kept = sample_indices(
            stop - first,
            float(ends_s[stop - 1] - reader.pts_s[first]) + _TICK_S,
            fps=self.fps,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
        )
        indices = [first + index for index in kept]
        frames = self._resized_frames(reader, path, indices)
        patches = patchify(
            frames,
            patch_size=self.patch_size,
            temporal_patch_size=self.temporal_patch_size,
            merge_size=self.merge_size,
        )
        times_s = (reader.pts_s[indices] - (start_s or 0.0)).tolist()
        patch_times_s = patch_times(times_s, self.temporal_patch_size)
        rows, columns = (side // self.patch_size for side in frames.shape[-2:])
        return VideoFrames(
            patches=normalize(patches, self.mean, self.std),
            grid=(len(patch_times_s), rows, columns),
            times_s=patch_times_s,
            frame_indices=tuple(indices),
        )

    def _resized_frames(self, reader: FrameReader, path: Path, indices: list[int]) -> Tensor:
        """Kept frames, (frames, 3, height, width) uint8, few at a time in their full size."""
        resized: list[Tensor] = []
        size: tuple[int, int] | None = None
        for at in range(0, len(indices), _FRAMES_AT_ONCE):
            pixels = torch.from_numpy(reader.get(indices[at : at + _FRAMES_AT_ONCE]))
            frames = rearrange(pixels, "frame height width channel -> frame channel height width")
            if size is None:
                size = self._resized(path, len(indices), *frames.shape[-2:])
            resized.append(resize(frames, *size))
        return torch.cat(resized)

    def _resized(self, path: Path, num_frames: int, height: int, width: int) -> tuple[int, int]:
        try:
            return smart_resize_video(
                num_frames,
                height,
                width,
                factor=self.patch_size * self.merge_size,
                temporal_factor=self.temporal_patch_size,
                min_pixels=self.min_pixels,
                max_pixels=self.max_pixels,
            )
        except MediaError as error:
            raise MediaError(f"video {path}: {error}") from error


def _stretch(
    reader: FrameReader, path: Path, start_s: float | None, end_s: float | None
) -> tuple[int, int]:
    """First frame shown in a stretch of the file, and the frame after its last."""
    if reader.num_frames < 2:
        raise MediaError(f"video {path}: it holds a single frame; use it as an image")
    start = 0.0 if start_s is None else start_s
    end = reader.duration_s if end_s is None else end_s
    name = f"video {path}: the stretch from {start:g} s to {end:g} s"
    if not 0 <= start < end <= reader.duration_s + _TICK_S:
        raise MediaError(
            f"{name} is empty or not within the file, which lasts {reader.duration_s:.3f} s; "
            "leave end_s out to mean the end of the file"
        )
    first, stop = np.searchsorted(reader.pts_s, [start, end]).tolist()
    if first == stop:
        raise MediaError(f"{name} holds no frame")
    return first, stop
