"""Pictures come back from patches as they went in."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vlmkit.data.image import normalize, patchify
from vlmkit.inspection.pictures import data_url, denormalize, unpatchify


@pytest.mark.parametrize(("frames", "size", "merge"), [(2, (64, 96), 2), (6, (32, 32), 1)])
@pytest.mark.parametrize("std", [(0.5, 0.5, 0.5), (0.2686, 0.2613, 0.2758)])
def test_pixels_are_exact(frames, size, merge, std):
    mean = (0.48, 0.45, 0.5)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (frames, 3, *size), generator=generator, dtype=torch.uint8)
    shape = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": merge}
    patches = normalize(patchify(pixels, **shape), mean, std)
    grid = (frames // 2, size[0] // 16, size[1] // 16)
    back = denormalize(unpatchify(patches, grid, **shape), mean, std)
    np.testing.assert_array_equal(back, pixels.permute(0, 2, 3, 1).numpy())


def opened(url: str) -> Image.Image:
    header, _, content = url.partition(",")
    assert header.endswith(";base64")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_small_picture_loses_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(opened(data_url(pixels, scale=0.5))), pixels)


def test_a_large_picture_is_compressed_and_may_shrink():
    ramp = np.linspace(0, 255, 320).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (160, 320, 3)).copy()
    url = data_url(pixels)
    error = np.abs(np.asarray(opened(url).convert("RGB")).astype(int) - pixels).mean()
    assert error < 3  # measured 0.7
    assert len(url) < pixels.size / 20
    assert opened(data_url(pixels, scale=0.5)).size == (160, 80)
