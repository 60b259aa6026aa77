"""Video files to patches: which frames to keep, how large, and when each is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vlmkit.batch import Grid
from vlmkit.data.frames.reader import TICK_S, FrameReader, OpenReader, open_auto
from vlmkit.data.image import fit_to_budget, normalized_patches, resize
from vlmkit.data.media import VideoRef
from vlmkit.errors import MediaError, Reason

_FRAMES_AT_ONCE = 16
"""Frames held at source resolution; an hour of 1080p would not fit in memory."""


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
            "take a longer stretch, or use the frame as an image",
            Reason.NO_FRAMES,
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
class PlannedVideo:
    """A video of which is known what will be kept, and how large, before a frame is resized.

    `times_s` and `frame_times_s` count from the start of the stretch.
    """

    video: VideoRef
    reader: FrameReader
    transform: VideoTransform
    source_size: tuple[int, int]  # height, width
    grid: Grid
    frame_indices: tuple[int, ...]  # in the file, of the kept frames
    frame_times_s: tuple[float, ...]
    times_s: tuple[float, ...]  # of each temporal patch

    @property
    def name(self) -> str:
        """For messages."""
        return self.video.name

    def patches(self, out: Tensor | None = None) -> Tensor:
        """Decode, resize, normalise and cut up; (patches, patch_dim) float32, in `out` if it is given.

        Few frames at a time are there in their full size.

        Raises:
            MediaError: a frame cannot be decoded.
        """
        transform = self.transform
        time, rows, columns = self.grid
        height, width = rows * transform.patch_size, columns * transform.patch_size
        patch_dim = 3 * transform.temporal_patch_size * transform.patch_size**2
        if out is None:
            out = torch.empty(time * rows * columns, patch_dim)
        step = max(_FRAMES_AT_ONCE // transform.temporal_patch_size, 1)  # temporal patches
        per_time = rows * columns
        for first in range(0, time, step):
            normalized_patches(
                resize(self._frames(first, first + step), height, width),
                patch_size=transform.patch_size,
                temporal_patch_size=transform.temporal_patch_size,
                merge_size=transform.merge_size,
                mean=transform.mean,
                std=transform.std,
                out=out[first * per_time : (first + step) * per_time],
            )
        return out

    def _frames(self, first: int, stop: int) -> Tensor:
        """Kept frames of some temporal patches, (frames, 3, height, width) uint8, in their full size."""
        size = self.transform.temporal_patch_size
        pixels = self.reader.get(self.frame_indices[first * size : stop * size])
        if pixels.shape[1:3] != self.source_size:
            raise MediaError(
                f"video {self.name}: the size of its frames changes from {self.source_size} to "
                f"{pixels.shape[1:3]} (height, width); re-encode it at one size"
            )
        return rearrange(
            torch.from_numpy(pixels), "frame height width channel -> frame channel height width"
        )


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

    def plan(
        self,
        video: VideoRef,
        start_s: float | None = None,
        end_s: float | None = None,
        share: float = 1.0,
    ) -> PlannedVideo:
        """Open a video and decide what to keep of it, or of a stretch of it. No frame is resized.

        Args:
            video: what to open.
            start_s: where the stretch begins, in seconds since the first frame; None: there.
            end_s: where it ends, that frame excluded; None: with the file.
            share: of the area over all frames that it would have; below 1, frames are left out, too, by
                its square root.

        Raises:
            MediaError: the file cannot be read, or the stretch is not in it; names file and reason.
        """
        reader = self.open_reader(video)
        first, stop = _stretch(reader, video.name, start_s, end_s)
        ends_s = [*reader.pts_s[1:], reader.duration_s]
        duration_s = float(ends_s[stop - 1] - reader.pts_s[first]) + TICK_S
        kept = self._sample(stop - first, duration_s, self.max_frames)
        height, width = self._resized(video.name, len(kept), reader.size, self.max_pixels)
        if share < 1:
            pixels = int(len(kept) * height * width * share)
            fewer = max(int(len(kept) * math.sqrt(share)), self.min_frames)
            kept = self._sample(stop - first, duration_s, fewer)
            height, width = self._resized(video.name, len(kept), reader.size, pixels)
        indices = [first + index for index in kept]
        frame_times_s = tuple((reader.pts_s[indices] - (start_s or 0.0)).tolist())
        times_s = patch_times(frame_times_s, self.temporal_patch_size)
        return PlannedVideo(
            video=video,
            reader=reader,
            transform=self,
            source_size=reader.size,
            grid=(len(times_s), height // self.patch_size, width // self.patch_size),
            frame_indices=tuple(indices),
            frame_times_s=frame_times_s,
            times_s=times_s,
        )

    def _sample(self, num_frames: int, duration_s: float, max_frames: int) -> list[int]:
        return sample_indices(
            num_frames,
            duration_s,
            fps=self.fps,
            min_frames=self.min_frames,
            max_frames=max_frames,
        )

    def _resized(
        self, name: str, num_frames: int, source_size: tuple[int, int], max_pixels: int
    ) -> tuple[int, int]:
        try:
            return smart_resize_video(
                num_frames,
                *source_size,
                factor=self.patch_size * self.merge_size,
                temporal_factor=self.temporal_patch_size,
                min_pixels=self.min_pixels,
                max_pixels=max(self.min_pixels, max_pixels),
            )
        except MediaError as error:
            raise MediaError(f"video {name}: {error}", error.code) from error


def _stretch(
    reader: FrameReader, name: str, start_s: float | None, end_s: float | None
) -> tuple[int, int]:
    """First frame shown in a stretch of the file, and the frame after its last."""
    if reader.num_frames < 2:
        raise MediaError(
            f"video {name}: it holds a single frame; use it as an image", Reason.NO_FRAMES
        )
    start = 0.0 if start_s is None else start_s
    end = reader.duration_s if end_s is None else end_s
    stretch = f"video {name}: the stretch from {start:g} s to {end:g} s"
    if not 0 <= start < end <= reader.duration_s + TICK_S:
        raise MediaError(
            f"{stretch} is empty or not within the file, which lasts {reader.duration_s:.3f} s; "
            "leave end_s out to mean the end of the file",
            Reason.NO_FRAMES,
        )
    first, stop = np.searchsorted(reader.pts_s, [start, end]).tolist()
    if first == stop:
        raise MediaError(f"{stretch} holds no frame", Reason.NO_FRAMES)
    return first, stop
