"""Videos read with decord."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.base import TICK_S
from vlmkit.data.frames.container_reader import (
    ContainerReader,
    import_decoder,
    openable,
)
from vlmkit.data.media import VideoRef
from vlmkit.errors import MediaError, Reason


class DecordReader(ContainerReader):
    """Reads with decord, exact where each keyframe starts afresh, as in most H.264 and VP9 files.

    decord has had no release since 2021, and can hang inside native code. What it is known to read
    wrongly without an error is refused: containers without timestamps or index, damaged frames (it hands
    out their neighbours), clips cut without re-encoding (it counts frames that the edit list hides, and
    mixes up the order of the rest) and turned Matroska files (it shows them lying). It has no decoder for
    AV1 and stumbles over a few small widths (16, 48). In files with open groups of pictures it can still
    be a few frames off; `PyAVReader` is not.
    """

    decoder = "decord"

    def __init__(self, video: VideoRef, num_threads: int = 1) -> None:
        """Open `video`.

        Args:
            video: a file, or its bytes.
            num_threads: decoding threads; 0 lets decord choose. Loader workers are parallel already.

        Raises:
            MediaError: decord cannot read the video, or not correctly; names video and reason.
            ImportError: decord is not installed.
        """
        super().__init__(video)
        decord = import_decoder("decord")
        if reason := _misread(self._head):
            raise self._error(reason)
        # Its errors share no base class, and their text may be bytes of a damaged file.
        self._failures = (
            decord.DECORDError,
            decord.DECORDLimitReachedError,
            RuntimeError,
            UnicodeDecodeError,
        )
        try:
            self._reader = decord.VideoReader(
                openable(self._source),
                num_threads=num_threads,
                fault_tol=1e-6,  # the accepted share of damaged frames; 0 accepts all of them
            )
            # (frames, start and end), relative to the first frame that is not hidden
            times_s = self._reader.get_frame_timestamp(list(range(len(self._reader))))
        except (*self._failures, AssertionError, IndexError) as error:  # the latter: no frames
            raise self._failed(error) from error
        # decord rounds to float32; four decimals restore times such as 10.45 s.
        pts_s = times_s[:, 0].astype(np.float64).round(4)
        if not np.abs(pts_s).max() < 1e9:
            raise self._error("frames without timestamps", Reason.NO_CLOCK)
        if pts_s[0] < -TICK_S:
            raise self._error("an edit list hides the first frames, which it counts")
        if (np.diff(pts_s) <= 0).any():
            raise self._error("timestamps that do not increase", Reason.NO_CLOCK)
        self.pts_s = pts_s - pts_s[0]

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        try:
            frames: NDArray[np.uint8] = self._reader.get_batch(list(indices)).asnumpy()
        except self._failures as error:
            raise self._failed(error) from error
        return frames

    def _failed(self, error: BaseException) -> MediaError:
        if "cannot find video stream" in str(error):
            return self._error("no video stream, or none it can decode", Reason.NO_FRAMES)
        if "Invalid frame count" in str(error):
            return self._error("no frames", Reason.NO_FRAMES)
        return self._error(re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error).strip()))


def _misread(head: bytes) -> str | None:
    """Why decord would read a file of this beginning wrongly, if so. Names of files are not believed."""
    if head[:1] == head[188:189] == b"\x47" or head[4:5] == head[196:197] == b"\x47":
        return "it seeks inexactly in MPEG transport streams"
    if head.startswith(b"\x00\x00\x01\xba"):
        return "it seeks inexactly in MPEG program streams"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "it seeks inexactly in ASF files"
    if head.startswith(b"\x1a\x45\xdf\xa3") and (
        b"\x76\x75\x84" in head or b"\x76\x75\x88" in head
    ):
        return "it does not turn Matroska files upright"
    return None
