"""What an opened video is, and the clock that every reader keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.media import VideoRef

TICK_S = 0.002
"""Slack for timestamps, which containers round (Matroska to 1 ms)."""


class FrameReader(Protocol):
    """An opened video.

    Frames are counted in the order, and stand in the orientation, in which a player shows them. Times
    come from the timestamps of frames; the header's frame rate and frame count are not believed.
    Pixels are those of the file: where a player would stretch them to squares, they are left alone.

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
            RGB, (len(indices), height, width, 3); height and width are `size`.

        Raises:
            MediaError: a frame cannot be decoded; names the video.
        """

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every frame, as shown.

        Raises:
            MediaError: nothing but the first frame tells, and it cannot be decoded.
        """
        height, width = self.get([0]).shape[1:3]
        return height, width

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return len(self.pts_s)

    @property
    def duration_s(self) -> float:
        """When the last frame ends; it lasts as long as the others on average, a single frame 0 s.

        Containers state how long it lasts, but FFmpeg versions read that differently.
        """
        last_s = float(self.pts_s[-1])
        return last_s + last_s / max(self.num_frames - 1, 1)


OpenReader = Callable[[VideoRef], FrameReader]
"""A reader class, or anything else that opens a video; raises MediaError where it cannot."""
