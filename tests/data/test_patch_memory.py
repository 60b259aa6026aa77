"""Patches are written once: into one piece of memory, which a worker shares with its parent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from vlmkit.data.image import normalize, normalized_patches, patchify
from vlmkit.data.patch_memory import empty_patches, joined


def test_neighbours_are_joined_without_a_copy():
    memory = torch.randn(10, 6)
    parts = [memory[1:3], memory[3:3], memory[3:7]]
    found = joined(parts)
    assert torch.equal(found, memory[1:7])
    assert found.data_ptr() == parts[0].data_ptr()


@pytest.mark.parametrize(
    "slices", [[(0, 2), (3, 5)], [(2, 4), (0, 2)], [(0, 2), (1, 3)], [(0, 2), (0, 2)]]
)
def test_all_others_are_copied(slices):
    memory = torch.randn(10, 6)
    parts = [memory[a:b] for a, b in slices]
    found = joined(parts)
    assert torch.equal(found, torch.cat(parts))
    found.zero_()
    assert memory.all()
    other = [memory[:2], torch.randn(3, 6), memory[2:4].clone()]
    assert torch.equal(joined(other), torch.cat(other))


@settings(deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3),
    st.sampled_from([1, 2]), st.sampled_from([4, 16]), st.integers(0, 2**32),
)  # fmt: skip
def test_patches_in_one_pass_are_those_of_two(frames, rows, columns, time, merge, side, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (frames, 3, rows * merge * side, columns * merge * side)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    sizes = {"patch_size": side, "temporal_patch_size": time, "merge_size": merge}
    colours = {"mean": (0.48, 0.45, 0.5), "std": (0.26, 0.5, 0.27)}
    expected = normalize(patchify(pixels, **sizes), **colours)
    assert torch.equal(normalized_patches(pixels, **sizes, **colours), expected)
    out = torch.full_like(expected, torch.nan)
    normalized_patches(pixels, **sizes, **colours, out=out)
    assert torch.equal(out, expected)


def test_large_pictures_are_cut_in_strips():
    pixels = torch.randint(0, 256, (1, 3, 640, 2048), dtype=torch.uint8)
    sizes = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    colours = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)}
    expected = normalize(patchify(pixels, **sizes), **colours)
    assert torch.equal(normalized_patches(pixels, **sizes, **colours), expected)


class Shared(Dataset):
    """Patches that say whether they were shared before anyone asked for it."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        if index >= 3:
            raise IndexError(index)
        patches = empty_patches(5, 7)
        return patches.fill_(index), patches.is_shared()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_writes_where_its_parent_reads(workers):
    found = list(DataLoader(Shared(), batch_size=None, num_workers=workers))
    assert [shared for _, shared in found] == [bool(workers)] * 3
    for index, (patches, _) in enumerate(found):
        assert patches.shape == (5, 7)
        assert (patches == index).all()
    assert empty_patches(0, 7).shape == (0, 7)
