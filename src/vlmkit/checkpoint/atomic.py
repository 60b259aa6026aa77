"""Writes a whole folder or nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from vlmkit.errors import CheckpointError

PARTIAL, RETIRED, DELETED = "partial", "old", "deleted"
HIDDEN = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[^.]*)-(?P<pid>\d+)-[0-9a-f]{8}\.(?P<kind>partial|old|deleted)"
)


@contextmanager
def atomic_folder(target: Path, overwrite: bool, known_by: str) -> Iterator[Path]:
    """Yield a hidden sibling to write into; it takes the name of the target when all went well.

    Until then the target stays as it was, and after an error nothing new is left. A process that is killed
    leaves hidden folders, which `leftovers` finds.

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
    partial, retired = _hidden_sibling(target, PARTIAL), _hidden_sibling(target, RETIRED)
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


def remove_folder(target: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name.

    Raises:
        OSError: the disk refuses.
    """
    deleted = _hidden_sibling(target, DELETED)
    target.rename(deleted)
    _flush(target.parent)
    shutil.rmtree(deleted)


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A hidden folder of a process that was killed, or that is still at work."""

    path: Path
    target: Path  # the folder that it was to become, or was
    host: str
    process_id: int

    def is_abandoned(self, after_s: float) -> bool:
        """Whether its process has ended, or, on another host, has changed nothing for `after_s` seconds."""
        if self.host == _host():
            return self.process_id == os.getpid() or not _is_alive(self.process_id)
        try:
            changed = [path.stat().st_mtime for path in (self.path, *self.path.iterdir())]
        except FileNotFoundError:  # its process is at work on it
            return False
        return time.time() - max(changed) >= after_s

    def settle(self) -> None:
        """Remove it; but a folder that was about to be replaced when the process died comes back."""
        if self.path.suffix == f".{RETIRED}" and not self.target.exists():
            with suppress(FileNotFoundError):  # another rank of this run was faster
                self.path.rename(self.target)
            _flush(self.target.parent)
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def leftovers(parent: Path) -> list[Leftover]:
    """Hidden folders in a folder that `atomic_folder` and `remove_folder` have made."""
    found = []
    for path in sorted(parent.iterdir()):
        if (match := HIDDEN.fullmatch(path.name)) and path.is_dir():
            found.append(
                Leftover(
                    path=path,
                    target=parent / match["name"],
                    host=match["host"],
                    process_id=int(match["pid"]),
                )
            )
    return found


def _hidden_sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{_host()}-{os.getpid()}-{uuid4().hex[:8]}.{kind}")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


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
