"""Where this process and its children are: the stacks of all their threads."""

from __future__ import annotations

import faulthandler
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import psutil

from vlmkit.child_signals import STACKS_SIGNAL

_PATIENCE_S = 2.0  # for children to write


def own_children() -> list[psutil.Process]:
    """Processes under this one, without those of other ranks that a launcher started from here."""
    mine = os.environ.get("LOCAL_RANK")
    children = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.environ().get("LOCAL_RANK", mine) == mine:
                children.append(child)
    return children


def write_stacks(file: TextIO, children: list[psutil.Process], folder: Path) -> None:
    """Write the stacks of this process, then those of its children.

    Args:
        file: a real file.
        children: of this process.
        folder: where prepared children write, see `vlmkit.child_signals`.
    """
    file.write(f"== process {os.getpid()}, the training process\n")
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)
    asked = [child for child in children if _answers(child)]
    before = {child.pid: _text(folder, child) for child in asked}
    for child in asked:
        with suppress(psutil.Error):
            child.send_signal(STACKS_SIGNAL)
    _wait_for(asked, folder, before)
    for child in children:
        with suppress(psutil.Error):
            file.write(f"\n== process {child.pid} ({child.status()}): {_command(child)}\n")
            said = _text(folder, child).removeprefix(before.get(child.pid, ""))
            file.write(said or "it does not tell its stacks\n")
            file.flush()


def _answers(child: psutil.Process) -> bool:
    """Whether it handles the signal, which would end it otherwise."""
    with suppress(OSError):
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (STACKS_SIGNAL - 1) & 1)
    return False


def _wait_for(children: list[psutil.Process], folder: Path, before: dict[int, str]) -> None:
    """Until all have written and none goes on writing."""
    deadline = time.monotonic() + _PATIENCE_S
    last: list[str] = []
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = [_text(folder, child) for child in children]
        if now == last and all(
            text != before[child.pid] for text, child in zip(now, children, strict=True)
        ):
            return
        last = now


def _text(folder: Path, child: psutil.Process) -> str:
    try:
        return (folder / f"{child.pid}.txt").read_text(errors="replace")
    except OSError:
        return ""


def _command(child: psutil.Process) -> str:
    return " ".join(child.cmdline())[:200]
