"""Decoding in a process that can be killed: same frames, limits kept, no process left behind."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from tests.data.clips import Clips, numbers
from tests.data.fake_readers import HungryOnce, Misbehaving, TorchIsHere
from vlmkit.assets import asset_path
from vlmkit.data.decode_process import Guarded
from vlmkit.data.frame_reader import DecordReader, FrameSequenceReader, PyAVReader, open_auto
from vlmkit.data.media import (
    FrameSequence,
    ImageArray,
    InMemory,
    VideoBlob,
    VideoFile,
    VideoRef,
)
from vlmkit.errors import DataError, MediaError, Reason, RecordError

LIMIT_S = 1.0


def named(name: str) -> VideoBlob:
    return VideoBlob(InMemory(b"content", name))


def pid_of(guard: Guarded) -> int | None:
    """The number of the guard's process, if it has one."""
    return None if guard._child is None else guard._child._process.pid


def is_running(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def guard() -> Iterator[Guarded]:
    guard = Guarded(Misbehaving, time_limit_s=LIMIT_S)
    yield guard
    guard.close()


def test_the_same_as_without_a_process(clips: Clips) -> None:
    for reader in (PyAVReader, open_auto):
        guard = Guarded(functools.partial(reader, num_threads=1))
        for name in ("constant.mp4", "variable.mp4", "turned90.mp4", "truncated.mp4"):
            file = VideoFile(clips(name))
            for video in (file, VideoBlob(InMemory(clips(name).read_bytes(), name))):
                here, there = reader(file), guard(video)
                assert np.array_equal(here.pts_s, there.pts_s)
                assert (here.size, here.duration_s) == (there.size, there.duration_s)
                for indices in ([3, 1, 2], range(here.num_frames), [], [5]):
                    assert np.array_equal(here.get(indices), there.get(indices)) or not indices
                assert there.get([]).shape == (0, *here.size, 3)


def test_a_relative_path_is_that_of_the_caller(
    clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guarded(PyAVReader)
    guard(VideoFile(clips("constant.mp4")))
    monkeypatch.chdir(clips.folder)
    assert numbers(guard(VideoFile(Path("constant.mp4"))).get([4])) == [4]


def test_lists_of_frames_are_opened_here() -> None:
    picture = ImageArray(np.zeros((4, 6, 3), dtype=np.uint8))
    guard = Guarded(DecordReader)
    reader = guard(FrameSequence((picture, picture), (0.0, 1.0)))
    assert isinstance(reader, FrameSequenceReader)
    assert pid_of(guard) is None


def test_one_process_for_all_files(guard: Guarded) -> None:
    readers = [guard(named("0.mp4"))]
    pid = pid_of(guard)
    readers += [guard(named(f"{number}.mp4")) for number in range(1, 20)]
    for reader in [*readers, *readers[::-1]]:  # more than the process keeps open
        assert reader.get([2, 4]).mean(axis=(1, 2, 3)).tolist() == [2.0, 4.0]
    assert pid_of(guard) == pid
    assert is_running(pid)
    guard.close()
    assert not is_running(pid)


@pytest.mark.parametrize("when", ["open", "get"])
def test_a_hang_that_holds_the_interpreter_is_ended(when: str, guard: Guarded) -> None:
    video = named(f"hang_on_{when}.mp4")
    good = guard(named("good.mp4"))
    start = time.monotonic()
    with pytest.raises(MediaError, match=rf"{video.name}: .*longer than 1 s") as raised:
        guard(video).get([0])
    assert raised.value.code == Reason.TIMEOUT
    assert LIMIT_S <= time.monotonic() - start < LIMIT_S + 2
    start = time.monotonic()
    with pytest.raises(MediaError, match=video.name) as raised:
        guard(video)
    assert raised.value.code == Reason.QUARANTINED
    assert time.monotonic() - start < 0.1
    assert good.get([3]).max() == 3  # opened again in the new process
    assert guard.quarantine == {video.name}


def test_a_quarantine_may_be_known_beforehand() -> None:
    guard = Guarded(Misbehaving, quarantine=["bad.mp4"])
    with pytest.raises(MediaError) as raised:
        guard(named("bad.mp4"))
    assert raised.value.code == Reason.QUARANTINED
    assert pid_of(guard) is None


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("die_on_open", "SIGSEGV"),
        ("crash_on_get", "SIGSEGV: Fatal Python error"),
        ("exit_on_get", "exit status 3"),
    ],
)
def test_a_process_that_dies_twice_over_a_file_is_spared_a_third_time(
    name: str, how: str, guard: Guarded
) -> None:
    good = guard(named("good.mp4"))
    codes = []
    for _ in range(3):
        with pytest.raises(MediaError) as raised:
            guard(named(name)).get([0])
        codes.append(raised.value.code)
        if len(codes) < 3:
            assert how in str(raised.value)
    assert codes == [Reason.DECODER_DIED, Reason.DECODER_DIED, Reason.QUARANTINED]
    assert good.get([1]).max() == 1


def test_errors_of_the_data_come_back_as_they_were(guard: Guarded) -> None:
    with pytest.raises(MediaError, match=r"refuse_on_get: no clock") as raised:
        guard(named("refuse_on_get")).get([0])
    assert type(raised.value) is MediaError
    assert raised.value.code == Reason.NO_CLOCK
    with pytest.raises(RecordError, match="row 7 is odd") as raised_record:
        guard(named("bad_record_on_open"))
    assert raised_record.value.code == Reason.BAD_RECORD
    assert guard(named("good.mp4")).num_frames == 5


def test_mistakes_of_the_program_are_no_errors_of_the_data(guard: Guarded) -> None:
    with pytest.raises(RuntimeError, match=r"a mistake of the reader(.|\n)*fake_readers.py") as bug:
        guard(named("mistake_on_get")).get([0])
    assert not isinstance(bug.value, DataError)
    with pytest.raises(
        RuntimeError, match=r"get returned \(1, 4, 8, 3\) uint8, not \(1, 6, 8, 3\)"
    ):
        guard(named("wrong_shape")).get([0])
    with pytest.raises(ImportError, match="pip install"):
        guard(named("absent_on_open"))
    assert guard(named("good.mp4")).num_frames == 5


def test_a_missing_file_is_named_without_a_process(tmp_path: Path) -> None:
    guard = Guarded(PyAVReader)
    with pytest.raises(MediaError, match=r"absent\.mp4.*not found") as raised:
        guard(VideoFile(tmp_path / "absent.mp4"))
    assert raised.value.code == Reason.MISSING_FILE
    assert pid_of(guard) is None


def test_what_the_reader_logs_is_logged_here(
    guard: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        guard(named("warn_on_open"))
    (record,) = caplog.records
    assert record.name == "tests.data.fake_readers"
    assert record.getMessage() == "reading warn_on_open with something else"


def test_what_decoders_print_fills_no_pipe(guard: Guarded) -> None:
    guard.time_limit_s = 30.0
    reader = guard(named("chatter_on_get"))
    for _ in range(2):
        assert reader.get([2]).max() == 2


def test_memory_is_limited() -> None:
    guard = Guarded(Misbehaving, memory_limit_gib=1.5)
    good = guard(named("good.mp4"))
    with pytest.raises(MediaError, match=r"more memory than 1\.5 GiB") as raised:
        guard(named("hungry_on_get")).get([0])
    assert raised.value.code == Reason.TOO_LARGE
    assert good.get([1]).max() == 1


def test_memory_that_was_lost_to_earlier_files_is_no_fault_of_the_next() -> None:
    guard = Guarded(HungryOnce)
    for number in range(7):
        assert guard(named(f"{number}.mp4")).get([4]).max() == 4


def test_the_limit_grows_with_the_work(guard: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def ask(child, request, payload, limit_s, expected=None):
        limits.append(limit_s)
        raise KeyboardInterrupt

    reader = guard(named("good.mp4"))
    child = guard._child
    reader._size = (2160, 3840)
    monkeypatch.setattr("vlmkit.data.decode_child.Child.ask", ask)
    for count in (1, 16, 32):
        with pytest.raises(KeyboardInterrupt):
            guard._get(child, reader, [0] * count)
    assert limits == [LIMIT_S, 4 * LIMIT_S, 8 * LIMIT_S]


def test_an_interruption_leaves_no_half_message(
    guard: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = guard(named("slow_on_get"))
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        reader.get([3])
    assert reader.get([1]).max() == 1


def test_threads_take_turns(guard: Guarded) -> None:
    wrong = []

    def read(number: int) -> None:
        reader = guard(named(f"{number}.mp4"))
        for _ in range(20):
            if reader.get([number]).max() != number:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_start_processes_of_their_own(guard: Guarded) -> None:
    guard(named("good.mp4"))
    guard.quarantine.add("bad.mp4")
    for other in (copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))):
        assert other._child is None
        assert (other.reader, other.time_limit_s) == (Misbehaving, LIMIT_S)
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


@pytest.mark.parametrize("limits", [{"time_limit_s": 0}, {"memory_limit_gib": -1}])
def test_limits_are_positive(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="set them above 0"):
        Guarded(**limits)


def test_a_reader_must_be_found_by_the_process() -> None:
    with pytest.raises(ValueError, match="define it in a module"):
        Guarded(lambda video: PyAVReader(video))


def test_the_process_imports_nothing_heavy(clips: Clips, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Guarded(TorchIsHere)(named("good.mp4"))
    assert caplog.messages == ["imported: []"]


def wait_for_end(pid: int, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


ORPHANED = """
import os, sys, threading, time
from tests.data.fake_readers import Misbehaving
from vlmkit.data.decode_process import Guarded
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
    # At once where its input ends, in a second where it looks for its parent, else when the alarm goes off.
    assert wait_for_end(child, {"idle": 1, "copied": 3, "hung": 8}[how])
    if copier:
        os.kill(copier, signal.SIGKILL)


class Files(Dataset):
    """The first frame of each file, or why there is none."""

    def __init__(self, names: list[str], guard: Guarded) -> None:
        self.names, self.guard = names, guard

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[int, str, int]:
        video: VideoRef = named(self.names[index])
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
    assert time.monotonic() - start < 2 * LIMIT_S + 10
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
