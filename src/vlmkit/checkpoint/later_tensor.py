"""Tensors of which each rank has a part, put together one at a time while a checkpoint is written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from torch import Tensor


class LaterTensor(ABC):
    """Becomes a tensor when it is asked for; shape and dtype are known before.

    Args:
        shape: of the whole.
        dtype: of the whole.
    """

    def __init__(self, shape: Iterable[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype
        self.is_given = False

    @property
    def nbytes(self) -> int:
        """Of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize

    def whole(self) -> Tensor | None:
        """On the host of the rank that writes; None on the others. All ranks ask for them in one order."""
        self.is_given = True
        return self.gather()

    @abstractmethod
    def gather(self) -> Tensor | None:
        """See `whole`."""


AnyTensor = Tensor | LaterTensor


def shards_of(stem: str, tensors: Mapping[str, AnyTensor], shard_bytes: int) -> StateDictSplit:
    """Which file each tensor goes to; the same on all ranks."""
    stand_ins = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }
    return split_torch_state_dict_into_shards(
        stand_ins, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=shard_bytes
    )


def order_in_file(tensors: Mapping[str, AnyTensor]) -> list[str]:
    """In which order tensors are written: the widest numbers first, so that all are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def later_tensors(
    files: Mapping[str, Mapping[str, AnyTensor]], shard_bytes: int
) -> Iterator[LaterTensor]:
    """Those of a checkpoint in the order in which it is written; what ranks that do not write go through.

    Args:
        files: tensors by the stem of their file.
        shard_bytes: of the writer.
    """
    for stem, tensors in files.items():
        for names in shards_of(stem, tensors, shard_bytes).filename_to_tensors.values():
            for name in order_in_file({name: tensors[name] for name in names}):
                if isinstance(tensor := tensors[name], LaterTensor):
                    yield tensor


def give_parts(files: Mapping[str, Mapping[str, AnyTensor]], shard_bytes: int) -> None:
    """Take part in putting together what has not been yet: on ranks that do not write, or no more."""
    for tensor in later_tensors(files, shard_bytes):
        if not tensor.is_given:
            tensor.whole()
