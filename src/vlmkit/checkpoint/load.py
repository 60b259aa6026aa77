"""Streams published weights into a model that may live on the meta device."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from vlmkit.checkpoint.files import DTYPES, StoredTensors
from vlmkit.checkpoint.key_map import (
    EMBEDDING,
    HEAD,
    TensorEntry,
    published_entries,
    stored_transposed,
    translate,
)
from vlmkit.errors import CheckpointError, listed
from vlmkit.models.qwen3vl import Qwen3VL

MOST_NAMES = 5  # of tensors, in a message


def load_weights(
    model: Qwen3VL,
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    leave_out: Collection[str] = (),
) -> None:
    """Fill a model from a folder in the published layout, one tensor at a time.

    Names, shapes and dtypes are compared with the files' headers before anything is changed. Peak
    memory is the model and one tensor.

    Args:
        model: parameters on meta are made as they are read; the others are overwritten in place.
        folder: holds `model.safetensors`, or several files and their index.
        device: where parameters that are on meta are made.
        dtype: of parameters that are on meta; None keeps that of the stored embedding.
        leave_out: parts, such as `fusion`, that keep their values and whose tensors stay unread; they
            are cast to the dtype of the others.

    Raises:
        CheckpointError: a file is missing or damaged, tensors are missing, unexpected or of another
            shape, or the weights are quantised; names file and tensor.
    """
    stored = StoredTensors(Path(folder))
    entries = published_entries(model, leave_out)
    names = _relevant_names(stored, model, leave_out)
    _check_names(stored.folder, entries, names, model)
    transposed = stored_transposed(entries.values(), stored.shapes)
    _check_contents(stored, entries.values(), transposed)
    if dtype is None and entries:
        dtype = DTYPES[stored.dtypes.get(EMBEDDING) or stored.dtypes[next(iter(entries))]]

    for name, tensor in stored.read(entries):
        entry = entries[name]
        swapped = transposed and entry.transposed_shape is not None
        _fill(model, entry.ours, entry.to_ours(tensor, swapped), device, dtype)

    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise CheckpointError(
            f"parameters of the parts {sorted(leave_out)} have no values: {listed(empty, MOST_NAMES)}"
        )
    for part in leave_out:
        if isinstance(module := getattr(model, part), nn.Module):
            module.to(dtype=dtype)
    model.to(device)


def _fill(
    model: nn.Module,
    name: str,
    values: Tensor,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> None:
    """Copy values into a parameter, making it first if it is on meta."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    parameter = owner.get_parameter(leaf)
    with torch.no_grad():
        if parameter.is_meta:
            # a copy always: what safetensors returns may be a window on the file itself
            made = torch.empty(parameter.shape, dtype=dtype, device=device).copy_(values)
            owner.register_parameter(
                leaf, nn.Parameter(made, requires_grad=parameter.requires_grad)
            )
        else:
            parameter.copy_(values)


def _relevant_names(stored: StoredTensors, model: Qwen3VL, leave_out: Collection[str]) -> set[str]:
    """Names of the stored tensors, without those of parts that are left out and a head that is tied.

    Raises:
        CheckpointError: the model is tied and the files hold a head that differs from the embedding.
    """
    names = set()
    for name in stored.shapes:
        found = translate(name, to_published=False)
        if found is None or found[0].partition(".")[0] not in leave_out:
            names.add(name)
    if model.decoder.head is None and names >= {HEAD, EMBEDDING}:
        tied = dict(stored.read([HEAD, EMBEDDING]))
        if not torch.equal(tied[HEAD], tied[EMBEDDING]):
            raise CheckpointError(
                f"{stored.folder} holds a head that differs from the embedding, but its config ties "
                "them: tie_word_embeddings must be false at the top level of config.json"
            )
        names.remove(HEAD)
    return names


def _check_names(
    folder: Path, entries: Collection[str], names: Collection[str], model: Qwen3VL
) -> None:
    missing = [name for name in entries if name not in names]
    unexpected = sorted(name for name in names if name not in entries)
    problems = []
    if missing:
        problems.append(f"it lacks {_tensors(missing)}")
        if missing == [HEAD]:
            problems.append(
                "if head and embedding are one, tie_word_embeddings must be true at the top level "
                "of config.json"
            )
    if unexpected:
        problems.append(
            f"it holds {_tensors(unexpected)}, for which this {type(model).__name__} has no place "
            "(a part that is passed as an object, as in fusion=NoFusion(), leaves its tensors unread)"
        )
    if problems:
        raise CheckpointError(f"{folder} does not fit the model: {'; '.join(problems)}")


def _check_contents(
    stored: StoredTensors, entries: Iterable[TensorEntry], transposed: bool
) -> None:
    for entry in entries:
        shape, dtype = stored.shapes[entry.published], stored.dtypes[entry.published]
        expected = (entry.transposed_shape if transposed else None) or entry.published_shape
        if shape != expected:
            raise CheckpointError(
                f"{stored.folder}: {entry.published} has shape {list(shape)}, "
                f"its config implies {list(expected)}"
            )
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{stored.folder}: {entry.published} is stored as {dtype}; quantised weights are not "
                f"read, only {', '.join(DTYPES)}"
            )


def _tensors(names: list[str]) -> str:
    """`3 tensors (a, b, c)`."""
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({listed(names, MOST_NAMES)})"
