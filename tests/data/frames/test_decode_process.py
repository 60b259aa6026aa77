"""Decoding in a process that can be killed: same frames, limits kept, errors told apart."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.clips import Clips, numbers
from tests.data.fake_readers import HungryOnce, Misbehaving, TorchIsHere
from tests.data.processes import is_running, named, pid_of
from vlmkit.build import build, compose_config
from vlmkit.data.frames.decode_process import Guarded
from vlmkit.data.frames.reader import DecordReader, FrameSequenceReader, PyAVReader, open_auto
from vlmkit.data.media import FrameSequence, ImageArray, InMemory, VideoBlob, VideoFile
from vlmkit.errors import DataError, MediaError, Reason, RecordError

LIMIT_S = 1.0  # of the fixture `guard`


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
    assert LIMIT_S <= time.monotonic() - start < LIMIT_S + 5  # measured 1.0 to 1.3
    start = time.monotonic()
    with pytest.raises(MediaError, match=video.name) as raised:
        guard(video)
    assert raised.value.code == Reason.QUARANTINED
    assert time.monotonic() - start < LIMIT_S / 2  # measured 0.0
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
    monkeypatch.setattr("vlmkit.data.frames.decode_child.Child.ask", ask)
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


@pytest.mark.parametrize("option", ["auto", "decord", "pyav"])
def test_options_are_guarded(option: str, clips: Clips) -> None:
    if option == "decord":
        pytest.importorskip("decord")
    config = compose_config("model=qwen3vl_tiny", f"frame_reader={option}")
    guard = build(config.processor).video.open_reader
    assert isinstance(guard, Guarded)
    assert numbers(guard(VideoFile(clips("constant.mp4"))).get([5, 3])) == [5, 3]
    assert b"hydra" not in guard._pickled
    guard.close()
