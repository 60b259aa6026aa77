"""Weights under our own names, as runs and their checkpoints hold them -> a model."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from vlmkit.checkpoint.files import StoredTensors
from vlmkit.errors import CheckpointError, listed


def fill_from_own(model: nn.Module, folder: Path, only: Sequence[str] = ("*",)) -> int:
    """Copy tensors from a folder of weights under our own names.

    Args:
        model: with storage; tensors that are copied are overwritten in place.
        folder: holds `model.safetensors`, or several files and their index.
        only: patterns of the names to copy, such as `vision.*`.

    Returns:
        How many tensors were copied.

    Raises:
        CheckpointError: a pattern fits nothing, or the tensors that the patterns ask for are not the same on
            both sides; names them.
    """
    stored = StoredTensors(folder)
    ours = model.state_dict()

    def wanted(names: Sequence[str]) -> set[str]:
        return {name for name in names if any(fnmatchcase(name, glob) for glob in only)}

    theirs, mine = wanted(list(stored.shapes)), wanted(list(ours))
    for glob in only:
        if not any(fnmatchcase(name, glob) for name in theirs):
            raise CheckpointError(f"{folder}: no tensor is called {glob}")
    if differing := theirs ^ mine:
        raise CheckpointError(
            f"{folder} and the model do not have the same tensors: {listed(sorted(differing), 5)}; "
            "start_from.only names those to copy"
        )
    with torch.no_grad():
        for name, tensor in stored.read(sorted(theirs)):
            if tensor.shape != ours[name].shape:
                raise CheckpointError(
                    f"{folder}: {name} is {list(tensor.shape)} there, {list(ours[name].shape)} in the model"
                )
            ours[name].copy_(tensor)
    return len(theirs)
