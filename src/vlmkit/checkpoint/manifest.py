"""What a checkpoint folder holds: every file with its size and SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
HASHING_THREADS = 4  # files hashed at once; SHA-256 is slower than most disks


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint."""

    size: int  # bytes
    sha256: str  # hexadecimal

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Read a file that something else has written."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(size=path.stat().st_size, sha256=digest)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Read before anything else in a checkpoint, and written after everything else."""

    step: int  # optimiser steps taken
    files: Mapping[str, FileEntry]  # all but the manifest, by name
    world_size: int
    config_hash: str | None
    time: str  # ISO 8601, UTC
    versions: Mapping[str, str] = field(default_factory=dict)  # by package

    def to_bytes(self) -> bytes:
        """The file's content, which carries its own SHA-256."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        seal = hashlib.sha256(_dumped(content)).hexdigest()
        return _dumped({**content, "sha256": seal})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read that of a checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged or of a later format; names the file.
        """
        path = folder / MANIFEST
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(
                f"{folder} is not a complete checkpoint: it holds no {MANIFEST}"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        try:
            content = json.loads(raw)
            if (found := content.pop("format")) != FORMAT:
                raise CheckpointError(
                    f"{path} has format {found}, this vlmkit reads {FORMAT}: use the version that "
                    "wrote it"
                )
            del content["sha256"]
            files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
            manifest = cls(files=files, **content)
            intact = manifest.to_bytes() == raw and all(Path(f).name == f for f in files)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}") from error
        if not intact:
            raise CheckpointError(f"{path} is damaged: its own SHA-256 is another one")
        return manifest

    def check_sizes(self, folder: Path) -> None:
        """Check that every file is there, as long as it was.

        Files that the manifest does not list are nobody's: they are not read and not refused.

        Raises:
            CheckpointError: names the file.
        """
        for name, entry in self.files.items():
            try:
                size = (folder / name).stat().st_size
            except FileNotFoundError as error:
                raise CheckpointError(f"{folder / name} is missing") from error
            except OSError as error:
                raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
            if size != entry.size:
                raise CheckpointError(
                    f"{folder / name} is damaged: {size} bytes instead of {entry.size}"
                )

    def check_contents(self, folder: Path) -> None:
        """Check the size and the SHA-256 of every file, reading all of them.

        Raises:
            CheckpointError: names the file.
        """
        self.check_sizes(folder)

        def check(item: tuple[str, FileEntry]) -> None:
            name, entry = item
            try:
                found = FileEntry.of(folder / name)
            except OSError as error:
                raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
            if found != entry:
                raise CheckpointError(
                    f"{folder / name} is damaged: its SHA-256 is not that of {MANIFEST}"
                )

        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            list(threads.map(check, self.files.items()))


def _dumped(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
