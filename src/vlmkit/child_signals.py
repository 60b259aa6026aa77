"""How loader workers and decoding processes take signals.

Two things are asked of them: to write where they are when training hangs, and to live on when a scheduler
sends SIGTERM to every process of a job, so that the main process can finish its step and save.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

STACKS_FOLDER = "VLMKIT_STACKS"
"""Environment variable with the folder for stacks, `<process id>.txt` each; child processes inherit it."""

STACKS_SIGNAL = signal.SIGUSR2
"""Asks a process for the stacks of its threads."""


def write_stacks_on_signal() -> None:
    """Answer `STACKS_SIGNAL` from now on, native code that hangs or not; nobody asks without the folder."""
    if folder := os.environ.get(STACKS_FOLDER):
        with suppress(OSError):  # the folder went with the process that made it
            file = (Path(folder) / f"{os.getpid()}.txt").open("w")
            faulthandler.register(STACKS_SIGNAL, file, all_threads=True)


def prepare_worker(worker_id: int) -> None:
    """A `worker_init_fn`: answer `STACKS_SIGNAL`; end at the parent's SIGTERM, not at a scheduler's."""
    write_stacks_on_signal()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
