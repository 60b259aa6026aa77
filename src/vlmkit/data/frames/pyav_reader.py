"""Videos read with PyAV."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.container_reader import (
    ContainerReader,
    import_decoder,
    openable,
)
from vlmkit.data.media import MAX_SOURCE_PIXELS, VideoRef
from vlmkit.errors import Reason


class _Packet(NamedTuple):
    """Where a compressed frame stands in time, in ticks of its stream."""

    pts: int
    dts: int
    is_keyframe: bool
    is_shown: bool  # False: an edit list hides the frame, though others are decoded from it


class PyAVReader(ContainerReader):
    """Reads with PyAV, which carries a current FFmpeg.

    Of a truncated file it reads what is there. Frames before the first keyframe, which nothing decodes,
    are not counted. Where the size changes midway, frames are scaled to that of the first.
    """

    decoder = "PyAV"

    def __init__(self, video: VideoRef, num_threads: int = 1) -> None:
        """Open `video`.

        Args:
            video: a file, or its bytes.
            num_threads: decoding threads; 0 lets FFmpeg choose. Loader workers are parallel already.

        Raises:
            MediaError: FFmpeg cannot read the video, or it holds none; names video and reason.
            ImportError: PyAV is not installed.
        """
        super().__init__(video)
        av = import_decoder("av")
        self._failure = av.FFmpegError
        try:
            self._container = av.open(
                openable(self._source),
                options={"protocol_whitelist": "file"},  # nothing that a damaged file may name
                metadata_errors="replace",
            )
            self._stream = self._container.streams.best("video")
            if self._stream is None:
                raise self._error("no video stream", Reason.NO_FRAMES)
            if self._stream.codec_context is None:
                raise self._error("no decoder for its codec")
            self._refuse_huge(self._stream.codec_context)
            self._stream.thread_type = "SLICE"  # "AUTO" can hang where torchvision is imported
            self._stream.codec_context.thread_count = num_threads
            packets = self._index()
        except self._failure as error:
            raise self._error(error) from error

        if not packets:
            raise self._error("no frames with timestamps", Reason.NO_FRAMES)
        self._keyframes = [packet for packet in packets if packet.is_keyframe] or packets[:1]
        self._shown = [p.pts for p in packets if p.is_shown and p.pts >= self._keyframes[0].pts]
        if not self._shown:
            raise self._error("no frames with timestamps", Reason.NO_FRAMES)
        tick_s = self._stream.time_base  # a fraction
        ticks = np.array([pts - self._shown[0] for pts in self._shown], dtype=np.float64)
        if (np.diff(ticks) <= 0).any():
            raise self._error("timestamps that do not increase", Reason.NO_CLOCK)
        self.pts_s = ticks * tick_s.numerator / tick_s.denominator

        self._frames: Iterator[Any] = iter(())
        self._position: int | None = None  # pts of the last frame taken from `_frames`
        try:
            self._first = self._read(0)  # headers do not tell how it is turned
            self._refuse_huge(self._first)
            self._size = self._pixels(self._first).shape[:2]
        except self._failure as error:
            raise self._error(error) from error

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        frames = np.empty((len(indices), *self.size, 3), dtype=np.uint8)
        rows_of: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            rows_of.setdefault(int(index), []).append(row)
        try:
            for index in sorted(rows_of):
                frames[rows_of[index]] = self._pixels(self._read(index) if index else self._first)
        except self._failure as error:
            raise self._error(error) from error
        return frames

    def _pixels(self, frame: Any) -> NDArray[np.uint8]:
        """RGB, as large as the first frame and turned as it is."""
        first = self._first
        scaled = frame.reformat(width=first.width, height=first.height, format="rgb24")
        return np.rot90(scaled.to_ndarray(), round(first.rotation / 90))

    def _refuse_huge(self, frame: Any) -> None:
        if frame.width * frame.height > MAX_SOURCE_PIXELS:
            raise self._error(
                f"frames of {frame.height}x{frame.width} (height x width) are more than "
                f"{MAX_SOURCE_PIXELS} pixels",
                Reason.TOO_LARGE,
            )

    def _read(self, index: int) -> Any:
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
                    return frame
                if frame.pts > wanted:
                    break
        raise self._error(f"frame {index} at {self.pts_s[index]:.2f} s cannot be decoded")

    def _decode(self) -> Iterator[Any]:
        """Frames from the current position on."""
        last: int | None = None
        for packet in chain(self._intact_packets(), [None]):  # None: the frames still inside
            for frame in self._stream.decode(packet):
                if frame.pts is None or (last is not None and frame.pts <= last):
                    raise self._error(
                        "timestamps out of order; re-encode it, for example to mp4", Reason.NO_CLOCK
                    )
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
        packets = self._container.demux(self._stream)
        try:
            yield from (p for p in packets if p.size and not p.is_corrupt)
        except IndexError:  # at the end, where PyAV looks for streams that began late
            return
