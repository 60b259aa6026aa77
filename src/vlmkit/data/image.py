"""Images to patches: resize to whole visual tokens at native aspect ratio, normalise, cut up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from vlmkit.batch import Grid
from vlmkit.data.media import ImageRef
from vlmkit.errors import MediaError, Reason

_STRIP_VALUES = 1 << 19

MAX_ASPECT_RATIO = 200
"""Longer side over shorter side beyond which a picture is refused."""


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Size of an image after resizing to whole visual tokens (Qwen2-VL report, dynamic resolution).

    Rounds both sides to multiples of `factor` (ties to even); where the area then leaves its bounds,
    scales the original size to the bound and rounds towards the inside.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        factor: side of a visual token in pixels (`patch_size * merge_size`).
        min_pixels: smallest area. A small image is enlarged to it.
        max_pixels: largest area. No side goes below `factor`, so a long thin image may exceed it.

    Returns:
        Height and width.

    Raises:
        MediaError: a side is not positive, or the sides differ by more than 200:1.
        ValueError: the bounds are unusable.
    """
    return fit_to_budget(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)


def fit_to_budget(
    height: int,
    width: int,
    *,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    num_frames: int = 1,
    num_padded_frames: int = 1,
) -> tuple[int, int]:
    """`smart_resize` of `num_frames` frames that share one budget of pixels.

    `num_padded_frames`, frames rounded to whole temporal patches, decides whether the budget is
    kept; `num_frames` sets the scale where it is not.
    """
    if min(height, width) < 1:
        raise MediaError(
            f"a picture of {height}x{width} (height x width) has no pixels", Reason.BAD_SHAPE
        )
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(
            f"min_pixels is {min_pixels} and max_pixels is {max_pixels}; "
            "set 0 < min_pixels <= max_pixels"
        )
    aspect_ratio = max(height, width) / min(height, width)
    if aspect_ratio > MAX_ASPECT_RATIO:
        raise MediaError(
            f"a picture of {height}x{width} (height x width) has an aspect ratio of "
            f"{aspect_ratio:.0f}, above {MAX_ASPECT_RATIO}; crop it, or leave it out",
            Reason.BAD_SHAPE,
        )

    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    pixels = num_frames * height * width
    new_pixels = num_padded_frames * new_height * new_width
    if new_pixels > max_pixels:
        shrink = math.sqrt(pixels / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_pixels < min_pixels:
        grow = math.sqrt(min_pixels / pixels)
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize (frames, 3, H, W) uint8 frames, bicubic with antialiasing, to uint8.

    The rounding back to uint8 is part of the published preprocessing.
    """
    resized = tvf.resize(
        frames, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return resized.contiguous()  # channels-last input stays channels-last, which is slow to cut up


def patchify(
    frames: Tensor, *, patch_size: int, temporal_patch_size: int, merge_size: int
) -> Tensor:
    """Cut frames into space-time patches.

    The last frame is repeated until the frames fill whole temporal patches; a still image fills one.

    Args:
        frames: (frames, channels, height, width).
        patch_size: height and width of a patch in pixels.
        temporal_patch_size: frames of a patch.
        merge_size: side of the window of patches that becomes one visual token; the patches of a
            window are neighbours in the result.

    Returns:
        (patches, channels * temporal_patch_size * patch_size**2). Patches run over time, then
        windows row by row, then the rows and columns of a window.

    Raises:
        ValueError: no frames, or sides that are not multiples of `patch_size * merge_size`.
    """
    num_frames, _, height, width = frames.shape
    factor = patch_size * merge_size
    if not num_frames or height % factor or width % factor:
        raise ValueError(
            f"cannot cut {num_frames} frames of {height}x{width} (height x width) into windows of "
            f"{factor}x{factor} pixels; resize with smart_resize(..., factor={factor}) first"
        )
    missing = -num_frames % temporal_patch_size
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    return rearrange(
        frames,
        "(time frame) channel (rows row patch_row) (columns column patch_column)"
        " -> (time rows columns row column) (channel frame patch_row patch_column)",
        frame=temporal_patch_size,
        row=merge_size,
        column=merge_size,
        patch_row=patch_size,
        patch_column=patch_size,
    )


def normalize(patches: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Map (patches, patch_dim) uint8 to float32, `(value / 255 - mean) / std` per channel."""
    values = patches.float()
    channels = rearrange(
        values, "patches (channel rest) -> patches channel rest", channel=len(mean)
    )
    channels.sub_(255 * torch.tensor(mean)[:, None]).div_(255 * torch.tensor(std)[:, None])
    return values


def normalized_patches(
    frames: Tensor,
    *,
    patch_size: int,
    temporal_patch_size: int,
    merge_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor | None = None,
) -> Tensor:
    """`normalize(patchify(frames))`, bit for bit, in strips that stay in the processor's cache.

    Args:
        frames: (frames, channels, height, width) uint8.
        patch_size: see `patchify`.
        temporal_patch_size: see `patchify`.
        merge_size: see `patchify`.
        mean: see `normalize`.
        std: see `normalize`.
        out: takes the result, (patches, patch_dim) float32, contiguous.
    """
    num_frames, channels, height, width = frames.shape
    window = patch_size * merge_size
    times, rows, columns = -(-num_frames // temporal_patch_size), height // window, width // window
    sides = (merge_size, merge_size, channels, temporal_patch_size, patch_size, patch_size)
    if out is None:
        out = torch.empty(times * rows * columns * merge_size**2, math.prod(sides[2:]))
    target = out.view(times, rows, columns, *sides)
    means, stds = (255 * torch.tensor(numbers)[:, None, None] for numbers in (mean, std))
    strip = max(1, _STRIP_VALUES // (temporal_patch_size * channels * window * width))
    for time in range(times):
        shown = frames[time * temporal_patch_size : (time + 1) * temporal_patch_size]
        for row in range(0, rows, strip):
            values = shown[:, :, row * window : (row + strip) * window].float()
            values.sub_(means).div_(stds)
            if 1 < len(values) < temporal_patch_size:  # the last frame fills the patch
                missing = temporal_patch_size - len(values)
                values = torch.cat([values, values[-1:].expand(missing, -1, -1, -1)])
            cut = rearrange(
                values,
                "frame channel (rows row patch_row) (columns column patch_column)"
                " -> rows columns row column channel frame patch_row patch_column",
                row=merge_size,
                column=merge_size,
                patch_row=patch_size,
                patch_column=patch_size,
            )
            target[time, row : row + strip] = cut  # a single frame fills all of the patch
    return out


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Turns a picture into patches, as the published Qwen3-VL image processor does.

    Attributes:
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames of a patch; an image repeats its only frame.
        merge_size: side, in patches, of the window that becomes one visual token.
        min_pixels: smallest area of a resized picture (64 visual tokens by default).
        max_pixels: largest area of a resized picture (16,384 visual tokens by default).
        mean: per channel, of pixel values between 0 and 1.
        std: per channel, of pixel values between 0 and 1.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    @property
    def patch_dim(self) -> int:
        """Values of a patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def plan(self, image: ImageRef, share: float = 1.0) -> PlannedImage:
        """Decide how large a picture becomes, from its header alone.

        Args:
            image: what to open.
            share: of the area that it would have; never less than the smallest area.

        Raises:
            MediaError: it cannot be opened, or see `smart_resize`; names the source.
        """
        source_size = image.size()
        try:
            height, width = self._resized(*source_size, self.max_pixels)
            if share < 1:
                height, width = self._resized(*source_size, int(height * width * share))
        except MediaError as error:
            raise MediaError(f"image {image.name}: {error}", error.code) from error
        return PlannedImage(
            image=image,
            transform=self,
            source_size=source_size,
            grid=(1, height // self.patch_size, width // self.patch_size),
        )

    def __call__(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Resize, normalise and cut up one picture; modes other than RGB are converted.

        Returns:
            Patches, (patches, patch_dim) float32, and their grid.

        Raises:
            MediaError: see `smart_resize`.
        """
        height, width = self._resized(image.height, image.width, self.max_pixels)
        grid = (1, height // self.patch_size, width // self.patch_size)
        return self.patches(image, grid), grid

    def patches(self, image: Image.Image, grid: Grid, out: Tensor | None = None) -> Tensor:
        """A picture at the size of a grid, (patches, patch_dim) float32, in `out` if it is given."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        pixels = torch.from_numpy(np.array(rgb))
        frame = rearrange(pixels, "height width channel -> 1 channel height width")
        return normalized_patches(
            resize(frame, grid[1] * self.patch_size, grid[2] * self.patch_size),
            patch_size=self.patch_size,
            temporal_patch_size=self.temporal_patch_size,
            merge_size=self.merge_size,
            mean=self.mean,
            std=self.std,
            out=out,
        )

    def _resized(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        return smart_resize(
            height,
            width,
            factor=self.patch_size * self.merge_size,
            min_pixels=self.min_pixels,
            max_pixels=max(self.min_pixels, max_pixels),
        )


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """A picture of which is known how large it becomes, before it is decoded."""

    image: ImageRef
    transform: ImageTransform
    source_size: tuple[int, int]  # height, width
    grid: Grid

    @property
    def name(self) -> str:
        """For messages."""
        return self.image.name

    def patches(self, out: Tensor | None = None) -> Tensor:
        """Decode, resize, normalise and cut up; (patches, patch_dim) float32, in `out` if it is given.

        Raises:
            MediaError: it cannot be decoded, or is not as large as its header says.
        """
        opened = self.image.open()
        if (opened.height, opened.width) != self.source_size:
            raise MediaError(
                f"image {self.name}: its header says {self.source_size} (height, width), it is "
                f"{(opened.height, opened.width)}"
            )
        return self.transform.patches(opened, self.grid, out)
