"""Writes a whole folder or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from vlmkit.errors import CheckpointError


@contextmanager
def atomic_folder(target: Path, overwrite: bool, known_by: str) -> Iterator[Path]:
    """Yield a hidden sibling to write into; it takes the name of the target when all went well.

    Until then the target stays as it was, and after an error nothing new is left.

    Args:
        target: what the folder is to be called; parents are made.
        overwrite: whether a folder of this kind that is there already may be replaced.
        known_by: a file that only folders of this kind hold. Others are never replaced.

    Raises:
        CheckpointError: there is something that must not be replaced.
    """
    target = target.expanduser().resolve()
    _check_replaceable(target, overwrite, known_by)
    target.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid4().hex[:8]
    partial = target.with_name(f".{target.name}.{unique}.partial")
    retired = target.with_name(f".{target.name}.{unique}.old")
    partial.mkdir()
    try:
        yield partial
        mode = (
            partial.stat().st_mode & 0o666
        )  # as the umask asks; safetensors writes for its owner only
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                path.chmod(mode)
                _flush(path)
        _flush(partial)
        _check_replaceable(target, overwrite, known_by)
        if target.exists():
            target.rename(retired)
        try:
            partial.rename(target)
        except OSError:
            if retired.exists():
                retired.rename(target)
            raise
        _flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)


def _check_replaceable(target: Path, overwrite: bool, known_by: str) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file, not a folder")
    if not overwrite:
        raise CheckpointError(
            f"{target} exists and is not empty: pass overwrite=true to replace it"
        )
    if not (target / known_by).is_file():
        raise CheckpointError(
            f"{target} exists and is not replaced, overwrite or not: without a {known_by} it does "
            "not look like a folder of this kind"
        )


def _flush(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
