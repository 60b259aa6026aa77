"""A run that hangs ends within a bound, and says where it was."""

import ctypes
import os
import subprocess
import time

import psutil
import pytest

from tests.training.survival.tiny_fit import Apart, Line, Numbers, fit
from vlmkit.child_signals import prepare_worker
from vlmkit.training.sections import Sections
from vlmkit.training.survival import watchdog as watchdog_module
from vlmkit.training.survival.watchdog import HUNG, Watchdog


def sleep_in_python(index: int) -> None:
    time.sleep(1000 if index == 3 else 0)


def sleep_with_the_gil(index: int) -> None:
    ctypes.PyDLL(None).sleep(1000 if index == 3 else 0)


def hanging_run(kind: str, folder) -> None:
    grace_s = 1.0 if kind == "gil" else 20.0
    watchdog = Watchdog(folder, {"forward": 1.0, "other": 1.0}, first_factor=10.0, grace_s=grace_s)
    if kind == "worker":
        worker = {"num_workers": 1, "worker_init_fn": prepare_worker}
        fit([watchdog], Line(), Numbers(sleep_in_python), **worker)
    else:
        # another rank, which watches itself: it must outlive the watchdog of this one
        other = subprocess.Popen(
            ["sleep", "60"], env={"LOCAL_RANK": "1", "PATH": os.environ["PATH"]}
        )
        print(f"other={other.pid}", flush=True)
        fit([watchdog], Line(sleep_with_the_gil if kind == "gil" else sleep_in_python))


@pytest.mark.parametrize(
    ("kind", "code", "function", "section"),
    [
        ("python", HUNG, "sleep_in_python", "forward"),
        ("gil", 1, "sleep_with_the_gil", "forward"),
        ("worker", HUNG, "sleep_in_python", "other"),
    ],
)
def test_a_hang_ends_the_run_and_its_place_is_named(kind, code, function, section, tmp_path):
    report = tmp_path / "hang-rank0.txt"
    process = Apart(tmp_path / "log", hanging_run, kind, tmp_path)
    assert process.exit_code(60) == code, process.output
    if kind == "gil":  # nothing can run but the timer in C
        assert "Timeout (0:00:03)" in process.output  # limit 1, grace 1, and 1
        assert function in process.output
        assert not report.exists()
    else:
        assert function in report.read_text()
        assert f"`{section}` has lasted" in process.output
        assert str(report) in process.output
    if kind == "worker":
        training, worker = report.read_text().split("\n== process", 1)
        assert function in worker
        assert function not in training
    else:
        other = psutil.Process(int(process.output.split("other=")[1].split()[0]))
        assert other.is_running()
        other.kill()


def hang(monkeypatch, folder, limits, **options):
    """A watchdog that says when it would have ended the process."""
    ended = []
    monkeypatch.setattr(Watchdog, "_end", lambda self, *args: ended.append(args))
    monkeypatch.setattr(watchdog_module.faulthandler, "dump_traceback_later", lambda *a, **k: None)
    watchdog = Watchdog(folder, limits, **options)
    watchdog.start()
    sections = Sections()
    sections.attach(watchdog)
    return watchdog, sections, ended


def test_each_section_has_its_limit_and_more_time_at_first(monkeypatch, tmp_path):
    watchdog, sections, ended = hang(
        monkeypatch, tmp_path, {"forward": 0.1, "save": 10.0}, first_factor=5.0
    )
    with sections("save"):
        time.sleep(0.25)
    with sections("forward"):  # compiles: 0.5 s
        time.sleep(0.25)
    with sections("forward"):
        for _ in range(5):  # one sign of life after the other
            time.sleep(0.05)
            watchdog.beat()
        with sections("collective"):
            time.sleep(0.25)
    assert not ended
    with sections("forward"):
        time.sleep(0.25)
    watchdog.stop()
    name, lasted, limit = ended[0]
    assert (name, limit) == ("forward", 0.1)
    assert 0.1 < lasted < 0.25


def test_it_watches_from_the_beginning_of_a_fit_to_its_end(tmp_path):
    watchdog = Watchdog(tmp_path)
    folders = []
    fit([watchdog], Line(lambda _: folders.append(os.environ["VLMKIT_STACKS"])), max_steps=2)
    assert len(set(folders)) == 1
    assert not os.path.exists(folders[0])
    assert "VLMKIT_STACKS" not in os.environ
    assert not list(tmp_path.iterdir())


def test_impossible_limits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="save may last 0"):
        Watchdog(tmp_path, {"save": 0.0})
