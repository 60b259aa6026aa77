"""One training checkpoint: a folder of safetensors and JSON, sealed by a manifest."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmkit.checkpoint.atomic import atomic_folder
from vlmkit.checkpoint.hashed_file import write_bytes, write_safetensors
from vlmkit.checkpoint.json_state import dump_state, load_state
from vlmkit.checkpoint.later_tensor import AnyTensor, shards_of
from vlmkit.checkpoint.manifest import MANIFEST, FileEntry, Manifest
from vlmkit.errors import CheckpointError

STATE = "state"  # state.json, and the tensors in it
PACKAGES = ("vlmkit", "torch", "lightning", "safetensors")
SHARD_BYTES = 5 * 10**9
SMALL_FILES = 4 << 20  # bytes, more than headers, state and manifest take


class DiskFullError(CheckpointError):
    """There is no room for a checkpoint; what was there is untouched."""


class CheckpointFolder:
    """A complete checkpoint on disk.

    Attributes:
        path: the folder.
        manifest: what it holds.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the manifest; see that every file is there, as long as it was.

        Raises:
            CheckpointError: names the file.
        """
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        self.manifest.check_sizes(self.path)

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self.manifest.step

    def verify(self) -> CheckpointFolder:
        """Read every file and compare its SHA-256 with the manifest.

        Raises:
            CheckpointError: names the file.
        """
        self.manifest.check_contents(self.path)
        return self

    def tensors(self, stem: str, copied: bool = True) -> dict[str, Tensor]:
        """Tensors of `<stem>.safetensors` or its shards, by name; none where there is no such file.

        Args:
            stem: of the file's name.
            copied: whether they are copies on the host. Otherwise they are windows on the files, of which
                only what is used is read; they break when retention deletes the files.

        Raises:
            CheckpointError: a file cannot be read; names it.
        """
        is_part = re.compile(re.escape(stem) + r"(-\d+-of-\d+)?\.safetensors").fullmatch
        tensors: dict[str, Tensor] = {}
        for name in filter(is_part, self.manifest.files):
            try:
                with safe_open(self.path / name, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118
                        window = file.get_tensor(key)
                        tensors[key] = window.clone() if copied else window
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{self.path / name} cannot be read: {error}") from error
        return tensors

    def state(self) -> dict[str, Any]:
        """Everything that is neither a weight nor a moment.

        Raises:
            CheckpointError: the file cannot be read; names it.
        """
        path = self.path / f"{STATE}.json"
        try:
            return load_state(path.read_bytes(), self.tensors(STATE))
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error


class CheckpointWriter:
    """The files of a checkpoint that is being written.

    Attributes:
        folder: other writers, such as a sharded one that runs on all ranks, may put files here; they are
            hashed when the manifest is written.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder = folder
        self._shard_bytes = shard_bytes
        self._files: dict[str, FileEntry] = {}

    def write_tensors(self, stem: str, tensors: Mapping[str, AnyTensor]) -> None:
        """Write `<stem>.safetensors`, or numbered shards and their index; nothing without tensors."""
        if not tensors:
            return
        split = shards_of(stem, tensors, self._shard_bytes)
        for file, names in split.filename_to_tensors.items():
            shard = {name: tensors[name] for name in names}
            self._files[file] = write_safetensors(self.folder / file, shard)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            self._write(f"{stem}.safetensors.index.json", json.dumps(index, indent=1).encode())

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write `state.json`, and `state.safetensors` where tensors are among the values."""
        text, tensors = dump_state(state)
        self.write_tensors(STATE, tensors)
        self._write(f"{STATE}.json", text)

    def seal(self, step: int, world_size: int, config_hash: str | None) -> None:
        """Write the manifest, after everything else."""
        for path in sorted(self.folder.iterdir()):
            if path.name not in self._files:
                self._files[path.name] = FileEntry.of(path)
        manifest = Manifest(
            step=step,
            files=self._files,
            world_size=world_size,
            config_hash=config_hash,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
        )
        write_bytes(self.folder / MANIFEST, manifest.to_bytes())

    def _write(self, name: str, content: bytes) -> None:
        self._files[name] = write_bytes(self.folder / name, content)


@contextmanager
def writing_checkpoint(
    path: str | Path,
    step: int,
    *,
    world_size: int = 1,
    config_hash: str | None = None,
    needed_bytes: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[CheckpointWriter]:
    """Write a checkpoint folder, all of it or nothing.

    Args:
        path: what the folder is to be called; a checkpoint of that name is replaced.
        step: optimiser steps taken.
        world_size: number of ranks.
        config_hash: of what decides how the run goes.
        needed_bytes: of all tensors; refused before anything is written where the disk has less room.
        shard_bytes: tensors are split into files of at most this many bytes.

    Raises:
        DiskFullError: with the numbers.
        CheckpointError: the disk refuses, or a value cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_room(target.parent, needed_bytes)
        with atomic_folder(target, overwrite=True, known_by=MANIFEST) as partial:
            writer = CheckpointWriter(partial, shard_bytes)
            yield writer
            writer.seal(step, world_size, config_hash)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{target} cannot be written, the disk is full ({error}). {_REMEDY}"
            ) from error
        raise CheckpointError(f"{target} cannot be written: {error}") from error


def check_room(folder: Path, needed_bytes: int) -> None:
    """Compare what tensors take with what the disk has.

    Raises:
        DiskFullError: with the numbers.
    """
    needed, free = needed_bytes + SMALL_FILES, shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{folder}: a checkpoint takes {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB "
            f"left. {_REMEDY}"
        )


_REMEDY = "Delete what is not needed, or keep fewer checkpoints (keep_last, keep_every)"


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
