"""Videos that are lists of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.base import FrameReader
from vlmkit.data.media import FrameSequence
from vlmkit.errors import MediaError, Reason


class FrameSequenceReader(FrameReader):
    """Opens pictures one by one. The header of the first tells the size, and all others must have it."""

    def __init__(self, video: FrameSequence) -> None:
        """Open a list of frames.

        Raises:
            MediaError: it is empty.
        """
        if not video.frames:
            raise MediaError(f"video {video.name}: it has no frames", Reason.NO_FRAMES)
        self._video = video
        self._size: tuple[int, int] | None = None
        self.pts_s = np.array(video.times_s) - video.times_s[0]

    @property
    def size(self) -> tuple[int, int]:
        """See `FrameReader.size`."""
        if self._size is None:
            self._size = self._video.frames[0].size()
        return self._size

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        frames = np.empty((len(indices), *self.size, 3), dtype=np.uint8)
        for row, index in enumerate(indices):
            pixels = np.asarray(self._video.frames[index].open())
            if pixels.shape != frames.shape[1:]:
                raise MediaError(
                    f"video {self._video.name}: frame {index} is {pixels.shape[0]}x{pixels.shape[1]} "
                    f"(height x width), the first is {self.size[0]}x{self.size[1]}",
                    Reason.BAD_SHAPE,
                )
            frames[row] = pixels
        return frames
