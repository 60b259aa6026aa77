"""Weights under our own names, as runs and their checkpoints hold them -> a model."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from vlmkit.checkpoint.files import DTYPES, StoredTensors
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


class OwnWeights:
    """Parameters of a model that is on meta, read one at a time from a folder under our own names.

    Args:
        folder: see `fill_from_own`.
        model: of the same composition; its parameters take the dtypes that are stored.

    Raises:
        CheckpointError: the folder holds other tensors than the model, or of other shapes; names them.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.stored = StoredTensors(folder)
        parameters, every = dict(model.named_parameters()), model.state_dict()
        if differing := (parameters.keys() - self.stored.shapes) | (
            self.stored.shapes.keys() - every
        ):
            raise CheckpointError(
                f"{folder} and the model do not have the same tensors: {listed(sorted(differing), 5)}"
            )
        for name, parameter in parameters.items():
            if (shape := self.stored.shapes[name]) != tuple(parameter.shape):
                raise CheckpointError(
                    f"{folder}: {name} is {list(shape)} there, {list(parameter.shape)} in the model"
                )
            parameter.data = parameter.data.to(DTYPES[self.stored.dtypes[name]])

    def __call__(self, name: str) -> Tensor:
        """The values of a parameter, on the host; a window on the file."""
        ((_, tensor),) = self.stored.read([name])
        return tensor
