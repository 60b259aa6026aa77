"""A process that is killed anywhere in a save leaves a checkpoint to go on from.

Run as a program, this file forks a saving process again and again and kills each one event further.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from vlmkit.checkpoint.hashed_file import HashedFile
from vlmkit.checkpoint.store import CheckpointStore

WATCHED = {
    "open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.truncate", "os.link",
}  # fmt: skip


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=1, shard_bytes=64)


def save(folder: Path, step: int, value: int) -> None:
    filled = {name: torch.full((10,), float(value)) for name in "ab"}  # 40 bytes: a shard each
    moments = {"a/exp_avg": torch.full((10,), float(value))}
    state = {"value": value, "tensor": torch.tensor(value)}
    store_in(folder).save(step, {"model": filled, "optimizer": moments}, state)


def value_of(folder: Path) -> int | None:
    """Of the newest sound checkpoint, which must be all of one save."""
    found = store_in(folder).newest()
    if found is None:
        return None
    tensors = [*found.tensors("model").values(), *found.tensors("optimizer").values()]
    assert len(tensors) == 3
    state = found.state()
    values = {float(x) for t in (*tensors, state["tensor"]) for x in t.flatten()} | {state["value"]}
    assert len(values) == 1, values
    return int(values.pop())


def die_at(event: int, folder: Path) -> Callable[[], int]:
    """Kill this process at an event below a folder. Returns what tells how many there have been."""
    count = 0

    def happens() -> bool:
        nonlocal count
        count += 1
        return count == event

    def audit(name: str, args: tuple) -> None:
        if name not in WATCHED or (name == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        # entries of a folder that is being removed are named without it
        inside = name in ("os.remove", "os.rmdir") or str(args[0]).startswith(str(folder))
        if inside and happens():
            os.kill(os.getpid(), signal.SIGKILL)

    write = HashedFile.write

    def torn_write(self: HashedFile, content: bytes | memoryview) -> None:
        if happens():
            write(self, content[: len(content) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, content)

    def fsync(descriptor: int) -> None:
        if happens():
            os.kill(os.getpid(), signal.SIGKILL)

    HashedFile.write = torn_write
    os.fsync = fsync
    sys.addaudithook(audit)
    return lambda: count


def in_child(action: Callable[[], int]) -> int:
    """Run in a fork. Returns its exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(action())
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(before: Path, folder: Path, step: int) -> dict[str, int]:
    """Save value 2 as `step` over `before`, which holds value 1 as step 1.

    Returns:
        Number of saves that were killed, and how many of them left the older and the newer checkpoint.
    """
    report = {"killed": 0, "older": 0, "newer": 0}

    def save_until(event: int) -> int:
        die_at(event, folder)
        save(folder, step, value=2)
        return 0

    for event in range(1, 1000):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        status = in_child(lambda: save_until(event))  # noqa: B023
        if status == 0:
            assert value_of(folder) == 2
            return report
        assert status == -signal.SIGKILL, status
        report["killed"] += 1
        if step != 1:  # there is a checkpoint to go on from even before anything is cleaned
            assert value_of(folder) in (1, 2), event
        store_in(folder).clean()
        assert not any(path.name.startswith(".") for path in folder.iterdir()), event
        value = value_of(folder)
        assert value in (1, 2), event
        report["older" if value == 1 else "newer"] += 1
        save(folder, step + 1, value=3)  # and the next save works
        assert value_of(folder) == 3
        assert [path.name for path in folder.iterdir()] == [f"step-{step + 1:08d}"], event
    raise AssertionError("the save never came to its end")


def test_a_save_that_is_killed_at_any_event_leaves_a_sound_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for step, report in json.loads(done.stdout).items():
        # 7 files are opened, written, given a mode, flushed; folders renamed, the older one deleted
        assert report["killed"] > 40, (step, report)
        assert report["older"] > 30, (step, report)
        assert report["newer"] > 8, (step, report)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    os.fsync = lambda descriptor: None  # a killed process loses nothing that the system has
    root = Path(sys.argv[1]).resolve()
    save(root / "before", 1, value=1)
    steps = (2, 1)  # beside the older checkpoint, and in place of it
    print(json.dumps({n: kill_everywhere(root / "before", root / "killed", n) for n in steps}))
