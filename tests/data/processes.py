"""Whether decoding processes are there."""

from __future__ import annotations

import time

import psutil

from vlmkit.data.frames.decode_process import Guarded
from vlmkit.data.media import InMemory, VideoBlob


def named(name: str) -> VideoBlob:
    """A video for `fake_readers.Misbehaving`, which does what the name says."""
    return VideoBlob(InMemory(b"content", name))


def pid_of(guard: Guarded) -> int | None:
    """The number of the guard's process, if it has one."""
    return None if guard._child is None else guard._child._process.pid


def is_running(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(pid: int, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)
