"""Files that are derived from data files, kept under the user's cache folder; delete them at will."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from vlmkit.data.sources.files import short_hash
from vlmkit.errors import ConfigError

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


def cache_folder(kind: str) -> Path:
    """`~/.cache/vlmkit/<kind>`, or below `XDG_CACHE_HOME`."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "vlmkit" / kind


def cached(
    kind: str,
    subject: str,
    state: str,
    write: Callable[[Path], None],
    load: Callable[[Path], Loaded],
) -> Loaded:
    """What `load` makes of a derived file, written first if there is none for this state.

    The file takes its name in one step: after a kill there is the whole file or none. Of several
    processes one writes and the others wait. Files of the subject's earlier states are removed.

    Args:
        kind: folder within the cache; what is derived, and how.
        subject: what it is derived from, such as a path.
        state: changes whenever the subject does.
        write: writes the derived file to a path.
        load: opens it; raises OSError or ValueError where it is damaged.

    Raises:
        ConfigError: the cache cannot be written.
    """
    folder = cache_folder(kind)
    stem = short_hash(subject)
    target = folder / f"{stem}-{short_hash(state)}"
    found = _load(target, load)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{stem}.lock", subject) as alone:
            found = _load(target, load)
            if found is None:
                if alone:  # then whatever else is there is old, or of a process that was killed
                    for old in folder.glob(f"{stem}-*"):
                        old.unlink(missing_ok=True)
                _write_whole(target, write)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ConfigError(
            f"the cache {folder} {'has no space left' if full else 'cannot be written'} ({error}): set "
            "XDG_CACHE_HOME to a folder on another disk"
        ) from error
    return load(target) if found is None else found


def check_space(kind: str, needed_bytes: int, what: str) -> None:
    """Refuse to begin what cannot end well.

    Raises:
        ConfigError: names the folder, what is needed and what is free.
    """
    folder = cache_folder(kind)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed_bytes > free:
        raise ConfigError(
            f"{what} takes about {needed_bytes / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are "
            "free: set XDG_CACHE_HOME to a folder on another disk"
        )


def _load(path: Path, load: Callable[[Path], Loaded]) -> Loaded | None:
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.info("%s is damaged and made anew: %s", path, error)
        return None


def _write_whole(target: Path, write: Callable[[Path], None]) -> None:
    partial = target.with_name(f"{target.name}.{uuid4().hex[:8]}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, subject: str) -> Iterator[bool]:
    """Let one process in at a time; yields False where the file system knows no locks.

    The system drops a lock when its process ends, however it ends.
    """
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            logger.info("waiting for another process that prepares %s", subject)
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
