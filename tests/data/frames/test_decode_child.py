"""Decoding processes begin with their loader worker and end with it, however it ends."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from tests.data.clips import Clips
from tests.data.fake_readers import Misbehaving
from tests.data.processes import is_running, named, pid_of, wait_for_end
from vlmkit.assets import asset_path
from vlmkit.data.frames.decode_process import Guarded
from vlmkit.data.frames.reader import open_auto
from vlmkit.data.media import VideoFile
from vlmkit.errors import MediaError

ORPHANED = """
import os, sys, threading, time
from tests.data.fake_readers import Misbehaving
from vlmkit.data.frames.decode_process import Guarded
from vlmkit.data.media import InMemory, VideoBlob
guard = Guarded(Misbehaving, time_limit_s=1)
guard(VideoBlob(InMemory(b"x", "good.mp4")))
child = guard._child._process.pid
how = sys.argv[1]
copier = 0
if how == "copied":
    copier = os.fork()  # holds copies of the pipes
    if not copier:
        time.sleep(20)
        os._exit(0)
print(child, copier, flush=True)
if how == "hung":
    guard(VideoBlob(InMemory(b"x", "hang_on_open")))
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["idle", "copied", "hung"])
def test_the_process_ends_with_a_parent_that_is_killed(how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANED, how],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert parent.stdout is not None
    child, copier = map(int, parent.stdout.readline().split())
    if how == "hung":
        time.sleep(0.5)  # let it hang
    assert is_running(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    # At once where its input ends, after a second where it looks for its parent, else by its alarm after six.
    assert wait_for_end(child, {"idle": 4, "copied": 6, "hung": 12}[how])
    if copier:
        os.kill(copier, signal.SIGKILL)


class Files(Dataset):
    """The first frame of each file, or why there is none."""

    def __init__(self, names: list[str], guard: Guarded) -> None:
        self.names, self.guard = names, guard

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[int, str, int]:
        video = named(self.names[index])
        try:
            value = str(self.guard(video).get([index % 5]).max())
        except MediaError as error:
            value = str(error.code)
        return os.getpid(), value, pid_of(self.guard) or 0


def test_loader_workers_have_a_process_each(guard: Guarded) -> None:
    names = ["0", "1", "hang_on_open", "3", "4", "die_on_get", "hang_on_get", "7", "8", "9"]
    own = guard(named("good.mp4"))  # its process must not be shared
    loader = DataLoader(
        Files(names, guard),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",  # "spawn" pickles, see above
        timeout=60,
    )
    start = time.monotonic()
    seen = list(loader)
    assert [value for _, value, _ in seen] == [
        *("0", "1", "timeout", "3", "4"),
        *("decoder_died", "timeout", "2", "3", "4"),
    ]
    assert len({worker for worker, _, _ in seen}) == 2
    assert pid_of(guard) not in {child for _, _, child in seen}
    assert time.monotonic() - start < 2 * guard.time_limit_s + 10
    assert own.get([3]).max() == 3
    for child in {child for _, _, child in seen if child}:
        assert wait_for_end(child, 3)  # with its worker


def test_real_decoders_in_loader_workers(clips: Clips) -> None:
    guard = Guarded(open_auto)
    videos = [clips("constant.mp4"), asset_path("video", "big_buck_bunny.mp4")] * 4
    loader = DataLoader(
        videos,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=2,
        collate_fn=lambda path: guard(VideoFile(path)).get([5]).shape,
    )
    assert list(loader) == [(1, 64, 96, 3), (1, 180, 320, 3)] * 4


def test_copies_start_processes_of_their_own(guard: Guarded) -> None:
    guard(named("good.mp4"))
    guard.quarantine.add("bad.mp4")
    for other in (copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))):
        assert other._child is None
        assert (other.reader, other.time_limit_s) == (Misbehaving, guard.time_limit_s)
        assert other.quarantine == {"bad.mp4"}
        assert other(named("good.mp4")).get([2]).max() == 2


def test_nothing_is_left_behind_by_an_instance_that_is_gone() -> None:
    guard = Guarded(Misbehaving)
    guard(named("good.mp4"))
    pid = pid_of(guard)
    assert is_running(pid)
    del guard
    gc.collect()
    assert not is_running(pid)
