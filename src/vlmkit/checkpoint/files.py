"""A folder in the published layout: its config and the tensors in its safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmkit.checkpoint.key_map import Shape
from vlmkit.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
}
"""What weights may be stored as, by the names of safetensors; anything else is quantised."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a table of settings.

    Raises:
        CheckpointError: the file is missing or is not one; names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a table, it holds a {type(content).__name__}")
    return content


class StoredTensors:
    """The tensors of a checkpoint folder. Headers are read at once, values on demand.

    Attributes:
        shapes: of every tensor, by published name.
        dtypes: as safetensors spells them, such as `BF16`.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers of all files.

        Raises:
            CheckpointError: a file is missing, cut short or not safetensors, or two files hold the same
                tensor; names the file.
        """
        self.folder = folder
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        index, shards = _shards(folder)
        for shard in shards:
            self._read_header(shard)
        for name, file in index.items():
            if self._files.get(name) != folder / file:
                raise CheckpointError(f"{folder / INDEX} places {name} in {file}, it is not there")

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Read tensors one at a time, file by file.

        Raises:
            CheckpointError: a file cannot be read any more; names it.
        """
        for path in dict.fromkeys(self._files.values()):
            wanted = [name for name in names if self._files[name] == path]
            if not wanted:
                continue
            try:
                with safe_open(path, framework="pt") as file:
                    for name in wanted:
                        yield name, file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from error

    def _read_header(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, {INDEX} names it: download the folder again")
        try:
            with safe_open(path, framework="pt") as file:
                for name in list(file.keys()):
                    if name in self._files:
                        raise CheckpointError(f"{path} and {self._files[name]} both hold {name}")
                    header = file.get_slice(name)
                    self.shapes[name] = tuple(header.get_shape())
                    self.dtypes[name] = header.get_dtype()
                    self._files[name] = path
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is cut short or is not a safetensors file ({error}): download it again"
            ) from error


def _shards(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """What the index says, if there is one, and the safetensors files."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if (folder / WEIGHTS).is_file():
        return {}, [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX} has no weight_map")
        names = sorted(set(weight_map.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise CheckpointError(f"{folder / INDEX} names a file outside its folder: {outside[0]}")
        return weight_map, [folder / name for name in names]
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]}, a pickle, which can run any code when it is read: vlmkit "
            "reads safetensors only. If you trust the file, rewrite it once with transformers: "
            "AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
