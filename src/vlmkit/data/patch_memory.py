"""Memory for patches, by far the largest part of a batch: written once, and copied nowhere on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


def empty_patches(count: int, patch_dim: int) -> Tensor:
    """Room for patches, (count, patch_dim) float32; a loader's worker shares it with its parent."""
    if get_worker_info() is None or not count:
        return torch.empty(count, patch_dim)
    storage = torch.UntypedStorage._new_shared(4 * count * patch_dim)
    return torch.empty(0).set_(storage, 0, (count, patch_dim), (patch_dim, 1))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Patches of several samples, (patches, patch_dim); no copy where they follow each other in memory.

    Args:
        parts: one at least.
    """
    filled = [part for part in parts if len(part)] or list(parts[:1])
    first = filled[0]
    start = first.data_ptr()
    for part in filled:
        if (
            part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or part.data_ptr() != start
            or not part.is_contiguous()
        ):
            return torch.cat(filled)
        start += part.numel() * part.element_size()
    return first.as_strided((sum(map(len, filled)), first.shape[1]), first.stride())
