"""Pictures to patches: published sizes, agreement with transformers, order of patches, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmkit.data.image import ImageTransform, patchify, smart_resize
from vlmkit.data.media import ImageArray, ImageFile
from vlmkit.errors import MediaError

PUBLISHED = {"factor": 32, "min_pixels": 65_536, "max_pixels": 16_777_216}


def noise(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture with detail at every scale, so that resampling matters."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = Image.fromarray(fine[: height // 8 + 1, : width // 8 + 1]).resize((width, height))
    return Image.blend(Image.fromarray(fine), coarse, 0.5).convert(mode)


def blank(height: int, width: int) -> ImageArray:
    """A picture of any size that takes no memory."""
    return ImageArray(np.broadcast_to(np.uint8(0), (height, width, 3)))


@pytest.mark.parametrize(
    ("size", "resized", "num_tokens"),
    [
        ((300, 400), (288, 384), 108),
        ((1080, 1920), (1088, 1920), 2040),
        ((3000, 4000), (3008, 4000), 11750),
        ((10, 1000), (32, 2560), 80),
        ((32, 32), (256, 256), 64),
        ((224, 224), (256, 256), 64),
        ((16, 16), (256, 256), 64),
        ((8000, 8000), (4096, 4096), 16384),
    ],
)
def test_published_sizes(size: tuple[int, int], resized: tuple[int, int], num_tokens: int) -> None:
    assert smart_resize(*size, **PUBLISHED) == resized
    time, rows, columns = ImageTransform().plan(blank(*size)).grid
    assert (time, rows * 16, columns * 16) == (1, *resized)
    assert rows * columns // 4 == num_tokens


@given(
    height=st.integers(1, 10_000),
    width=st.integers(1, 10_000),
    factor=st.sampled_from([28, 32]),
    min_tokens=st.integers(1, 256),
    more_tokens=st.integers(0, 16_384),
)
def test_resized_sides_are_whole_tokens_within_bounds(
    height: int, width: int, factor: int, min_tokens: int, more_tokens: int
) -> None:
    min_pixels = min_tokens * factor**2
    max_pixels = (min_tokens + more_tokens) * factor**2
    bounds = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(MediaError, match="aspect ratio"):
            smart_resize(height, width, **bounds)
        return
    new_height, new_width = smart_resize(height, width, **bounds)
    assert new_height % factor == new_width % factor == 0
    assert new_height >= factor
    assert new_width >= factor
    # The bound that plain rounding breaks is kept; where bounds are close, the other one may give.
    rounded = round(height / factor) * round(width / factor) * factor**2
    if rounded > max_pixels:
        assert new_height * new_width <= max_pixels or factor in (new_height, new_width)
    elif rounded < min_pixels:
        assert new_height * new_width >= min_pixels
    else:
        assert new_height * new_width == rounded


@settings(deadline=None)  # the first example imports transformers
@given(height=st.integers(1, 10_000), width=st.integers(1, 10_000))
def test_smart_resize_agrees_with_transformers(height: int, width: int) -> None:
    qwen2_vl = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    try:
        expected = qwen2_vl.smart_resize(height, width, 32, 65_536, 16_777_216)
    except ValueError:
        expected = None
    try:
        assert smart_resize(height, width, **PUBLISHED) == expected
    except MediaError:
        assert expected is None


@pytest.mark.parametrize(("height", "width"), [(0, 100), (100, 0), (1, 201), (2010, 10)])
def test_unusable_pictures_name_their_size(height: int, width: int) -> None:
    with pytest.raises(MediaError, match=f"{height}x{width}"):
        smart_resize(height, width, **PUBLISHED)


def test_the_widest_picture_allowed() -> None:
    assert smart_resize(1, 200, **PUBLISHED) == (32, 3648)


@pytest.mark.parametrize(("min_pixels", "max_pixels"), [(0, 100), (-1, 100), (200, 100)])
def test_unusable_bounds(min_pixels: int, max_pixels: int) -> None:
    with pytest.raises(ValueError, match=f"min_pixels is {min_pixels} and max_pixels is 100"):
        smart_resize(50, 50, factor=32, min_pixels=min_pixels, max_pixels=max_pixels)


def test_patches_of_a_window_are_neighbours() -> None:
    """A 4 x 6 grid whose pixels hold row * 10 + column of their patch."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    frame = (10 * rows + columns).repeat_interleave(16, 0).repeat_interleave(16, 1)
    patches = patchify(
        frame.expand(1, 3, -1, -1), patch_size=16, temporal_patch_size=2, merge_size=2
    )
    assert patches.shape == (24, 1536)
    assert (patches == patches[:, :1]).all()
    assert patches[:, 0].reshape(6, 4).tolist() == [
        [0, 1, 10, 11],
        [2, 3, 12, 13],
        [4, 5, 14, 15],
        [20, 21, 30, 31],
        [22, 23, 32, 33],
        [24, 25, 34, 35],
    ]


def test_a_patch_runs_over_channels_then_frames_then_pixels() -> None:
    frames = torch.arange(4 * 3 * 32 * 32).view(4, 3, 32, 32)
    patches = patchify(frames, patch_size=16, temporal_patch_size=2, merge_size=2)
    assert patches.shape == (8, 1536)
    patch = patches[4 + 1].view(3, 2, 16, 16)  # second temporal patch; first row, second column
    assert torch.equal(patch, frames[2:, :, :16, 16:].transpose(0, 1))


def test_the_last_frame_fills_the_last_temporal_patch() -> None:
    frames = torch.arange(3 * 3 * 32 * 32).view(3, 3, 32, 32)
    sizes = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    assert torch.equal(patchify(frames, **sizes), patchify(frames[[0, 1, 2, 2]], **sizes))


@pytest.mark.parametrize("shape", [(1, 3, 48, 32), (1, 3, 32, 40), (0, 3, 32, 32)])
def test_frames_that_cannot_be_cut(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"cannot cut {shape[0]} frames of {shape[2]}x{shape[3]}"):
        patchify(torch.zeros(shape), patch_size=16, temporal_patch_size=2, merge_size=2)


@pytest.mark.parametrize(
    ("height", "width", "mode"),
    [
        (300, 400, "RGB"),
        (17, 23, "RGB"),
        (640, 333, "RGB"),
        (901, 1201, "RGB"),
        (15, 1500, "RGB"),
        (256, 256, "RGB"),
        (123, 321, "L"),
    ],
)
def test_agrees_with_transformers(height: int, width: int, mode: str) -> None:
    """Measured difference to the torchvision backend of transformers 5.23: none, bit for bit."""
    transformers = pytest.importorskip("transformers")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    reference = transformers.Qwen2VLImageProcessor(
        patch_size=16,
        size={"shortest_edge": 65_536, "longest_edge": 640_000},
        image_mean=list(mean),
        image_std=list(std),
    )
    transform = ImageTransform(max_pixels=640_000, mean=mean, std=std)
    image = noise(height, width, seed=height, mode=mode)
    patches, grid = transform(image)
    expected = reference(image, return_tensors="pt")
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    assert grid == transform.plan(blank(height, width)).grid
    assert patches.dtype == torch.float32
    assert torch.equal(patches, expected["pixel_values"])


def test_black_and_white_become_minus_one_and_one() -> None:
    for colour, value in (("black", -1.0), ("white", 1.0)):
        patches, grid = ImageTransform()(Image.new("RGB", (40, 30), colour))
        assert grid == (1, 14, 20)
        assert patches.shape == (280, 1536)
        assert (patches == value).all()


def test_the_picture_itself_is_left_alone() -> None:
    image = noise(64, 64)
    before = np.array(image)
    ImageTransform()(image)
    assert np.array_equal(np.array(image), before)


def test_truncated_picture_names_file_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise(200, 200).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MediaError, match=r"cut\.jpg.*truncated"):
        ImageTransform()(ImageFile(path).open())


def test_missing_picture_names_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"absent\.png.*not found"):
        ImageTransform()(ImageFile(tmp_path / "absent.png").open())


def test_too_long_picture_is_refused() -> None:
    with pytest.raises(MediaError, match="3x603"):
        ImageTransform()(Image.new("RGB", (603, 3)))
