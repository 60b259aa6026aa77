"""Nested Python values as strict JSON, and tensors beside it. Nothing is pickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmkit.errors import CheckpointError

# JSON has no words for these; a table with one such key stands for them.
FLOAT, TUPLE, TABLE, TENSOR, ARRAY = "$float", "$tuple", "$table", "$tensor", "$array"


def dump_state(state: Mapping[str, Any]) -> tuple[bytes, dict[str, Tensor]]:
    """JSON text, and the tensors that it refers to by name.

    Numbers, strings, lists, tuples, dictionaries with any such keys, tensors and numpy arrays come back
    as they were. Subclasses come back as what they derive from, numpy's scalars as Python's numbers.

    Raises:
        CheckpointError: a value is of another type; names the place and the type.
    """
    encoder = _Encoder()
    content = encoder.encode(state, "state")
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    return text.encode(), encoder.tensors


def load_state(text: bytes, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `dump_state`."""
    state: dict[str, Any] = _decode(json.loads(text), tensors)
    return state


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def encode(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {FLOAT: str(float(value))}
        if isinstance(value, Tensor):
            return {TENSOR: self._keep(value, place)}
        if isinstance(value, np.ndarray):
            return {ARRAY: self._keep(self._of_array(value, place), place)}
        if isinstance(value, np.generic):
            return self.encode(value.item(), place)
        if isinstance(value, list | tuple):
            items = [self.encode(item, f"{place}/{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {TUPLE: items}
        if isinstance(value, Mapping):
            return self._encode_table(value, place)
        raise CheckpointError(
            f"{place} is a {type(value).__qualname__}, which a checkpoint cannot hold: only numbers, "
            "strings, lists, tuples, dictionaries, tensors and arrays of these are written. Turn it into "
            "one of them in state_dict()"
        )

    def _encode_table(self, table: Mapping[Any, Any], place: str) -> Any:
        if all(isinstance(key, str) and not key.startswith("$") for key in table):
            return {
                str.__str__(key): self.encode(item, f"{place}/{key}") for key, item in table.items()
            }
        pairs = table.items()
        return {
            TABLE: [
                [self.encode(k, f"{place}/a key"), self.encode(v, f"{place}/{k}")] for k, v in pairs
            ]
        }

    def _keep(self, tensor: Tensor, place: str) -> str:
        name = place = place.removeprefix("state/")
        count = 1
        while name in self.tensors:  # keys 1 and "1", or keys with slashes
            count += 1
            name = f"{place}#{count}"
        self.tensors[name] = tensor
        return name

    def _of_array(self, array: np.ndarray, place: str) -> Tensor:
        try:
            return torch.from_numpy(np.array(array))
        except TypeError as error:
            raise CheckpointError(
                f"{place} is an array of {array.dtype}, which no tensor can hold"
            ) from error


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if FLOAT in value:
        return float(value[FLOAT])
    if TENSOR in value:
        return tensors[value[TENSOR]]
    if ARRAY in value:
        return tensors[value[ARRAY]].numpy()
    if TUPLE in value:
        return tuple(_decode(item, tensors) for item in value[TUPLE])
    if TABLE in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value[TABLE]}
    return {key: _decode(item, tensors) for key, item in value.items()}
