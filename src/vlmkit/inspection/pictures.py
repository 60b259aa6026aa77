"""Patches -> pictures again, and pictures -> text that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlmkit.batch import Grid

Pixels = NDArray[np.uint8]

LOSSLESS_UNTIL = 64
"""Longer side, in pixels, up to which a picture is written without loss."""

_QUALITY = 82


def unpatchify(
    patches: Tensor, grid: Grid, *, patch_size: int, temporal_patch_size: int, merge_size: int
) -> Tensor:
    """Put frames together from patches; undoes `vlmkit.data.image.patchify`.

    Args:
        patches: (patches, channels * temporal_patch_size * patch_size**2) of one picture or video.
        grid: temporal patches, rows and columns, in patches.
        patch_size: height and width of a patch in pixels.
        temporal_patch_size: frames of a patch.
        merge_size: side of the window of patches that becomes one visual token.

    Returns:
        (frames, channels, height, width).
    """
    time, rows, columns = grid
    return rearrange(
        patches,
        "(time rows columns row column) (channel frame patch_row patch_column)"
        " -> (time frame) channel (rows row patch_row) (columns column patch_column)",
        time=time,
        rows=rows // merge_size,
        columns=columns // merge_size,
        row=merge_size,
        column=merge_size,
        frame=temporal_patch_size,
        patch_row=patch_size,
        patch_column=patch_size,
    )


def denormalize(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """Values that the model gets as pixels; undoes `vlmkit.data.image.normalize`.

    Args:
        frames: (frames, channels, height, width).
        mean: per channel.
        std: per channel.

    Returns:
        (frames, height, width, channels).
    """
    scale, shift = (torch.tensor(values)[:, None, None] for values in (std, mean))
    values = (frames.float() * scale + shift).mul(255).round().clamp(0, 255).to(torch.uint8)
    pixels: Pixels = rearrange(
        values, "frame channel height width -> frame height width channel"
    ).numpy()
    return pixels


def data_url(pixels: Pixels, scale: float = 1.0) -> str:
    """A picture, (height, width, 3), as `data:image/...`: small ones exactly, others compressed.

    Args:
        pixels: of the picture.
        scale: of its sides, to make it smaller; small pictures are left alone.
    """
    picture = Image.fromarray(pixels)
    written = io.BytesIO()
    if max(picture.size) <= LOSSLESS_UNTIL:
        kind = "png"
        picture.save(written, "PNG", optimize=True)
    else:
        kind = "webp"
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BOX)
        picture.save(written, "WEBP", quality=_QUALITY, method=4)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
