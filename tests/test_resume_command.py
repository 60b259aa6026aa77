"""The command survives being killed and being asked to stop: what it ends with is the same, bit for bit."""

from __future__ import annotations

import contextlib
import multiprocessing.forkserver
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.training.survival.tiny_fit import Apart
from tests.training.tiny_runs import (
    ROWS,
    SAMPLES,
    SHORT,
    assert_same_runs,
    crash_at,
    curve,
    steps_of,
)
from vlmkit.train import main

STEPS = 12
SETTINGS = {
    "samples": [*SAMPLES, "data.num_workers=1"],
    "rows": [*ROWS, "data.num_workers=0"],
}


def arguments(folder: Path, kind: str, *more: str) -> list[str]:
    return [
        *(SHORT + SETTINGS[kind]),
        *(f"run_dir={folder}", f"trainer.max_steps={STEPS}", "hydra.output_subdir=null"),
        *(f"hydra.run.dir={folder.parent}", *more),
    ]


def command(*words: str) -> None:
    """In a process of its own."""
    sys.exit(run_command(main, *words))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the command in a process that is forked from one with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Apart.__module__, "vlmkit.train", __name__])
    multiprocessing.forkserver.ensure_running()
    logs = tmp_path_factory.mktemp("logs")
    started: list[Apart] = []

    def run(*words: str) -> Apart:
        started.append(Apart(logs / f"{len(started)}.log", command, *words))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> dict[str, Path]:
    found = {kind: tmp_path_factory.mktemp(kind) / "run" for kind in SETTINGS}
    processes = [start(*arguments(folder, kind)) for kind, folder in found.items()]
    for process in processes:
        assert process.exit_code(120) == 0, process.output
    return found


def kill_until_done(start, folder: Path, kind: str, draw: random.Random, most: int) -> int:
    """Start the same command again and again, and kill it at any moment; the last start is left alone."""
    for kills in range(most + 1):
        process = start(*arguments(folder, kind, "resume=true"))
        if kills == most:
            break
        target = len(lines_of(folder)) + draw.randint(0, 3)  # lines of metrics, or seconds
        deadline = time.monotonic() + draw.uniform(2.0, 8.0)
        while process.exit_code(0) is None and time.monotonic() < deadline:
            if len(lines_of(folder)) > target:
                break
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.kill()
        process.exit_code(30)
    assert process.exit_code(120) == 0, process.output
    return kills


def lines_of(folder: Path) -> list[str]:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().splitlines() if metrics.is_file() else []


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_run_that_is_killed_at_any_moment_ends_the_same(kind, start, undisturbed, tmp_path):
    folder = tmp_path / "run"
    kill_until_done(start, folder, kind, random.Random(kind), most=3)
    assert_same_runs(folder, undisturbed[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_run_that_is_killed_ten_times_ends_the_same(kind, start, undisturbed, tmp_path):
    seed = int(time.time())
    print(f"seed {seed}")
    kill_until_done(start, tmp_path / "run", kind, random.Random(seed), most=10)
    assert_same_runs(tmp_path / "run", undisturbed[kind])


def test_the_same_command_goes_on_from_the_newest_checkpoint(start, undisturbed, tmp_path):
    """Killed within the step after a checkpoint."""
    folder = tmp_path / "run"
    process = start(*arguments(folder, "rows", *crash_at(7), "+callbacks.crash.kill=true"))
    assert process.exit_code(120) == -signal.SIGKILL, process.output
    assert steps_of(folder) == [3, 6]
    process = start(*arguments(folder, "rows", "resume=true"))
    assert process.exit_code(120) == 0, process.output
    assert f"going on from step 6 ({folder}" in process.output
    assert_same_runs(folder, undisturbed["rows"])


def test_a_signal_saves_and_leaves_with_75_and_run_goes_on(start, undisturbed, tmp_path):
    """Through the shell, as a scheduler would."""
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "vlmkit.train", *arguments(folder, "samples")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while process.poll() is None and len(lines_of(folder)) < 4:
            time.sleep(0.01)
        process.terminate()
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    stopped = steps_of(folder)[-1]
    assert f"stopped at step {stopped}" in said
    assert "Traceback" not in said
    assert [line[0] for line in curve(folder)] == list(range(stopped))
    again = start(f"run={folder}", "hydra.output_subdir=null")
    assert again.exit_code(120) == 0, again.output
    assert f"going on from step {stopped}" in again.output
    assert_same_runs(folder, undisturbed["samples"])


def test_a_finished_run_says_so_and_a_foreign_change_is_refused(undisturbed, capfd):
    folder = undisturbed["rows"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run_command(main, f"run={folder}", "hydra.output_subdir=null") == 0
    assert (
        f"has trained its {STEPS} steps: trainer.max_steps=<more> goes on" in capfd.readouterr().out
    )
    for change, words in (
        ("planner=samples", "only single keys can be changed"),
        ("~schedule", "only single keys can be changed"),
        ("data.rows.row_tokens=512", "the data are not those of the checkpoint"),
    ):
        given = [f"run={folder}", change, "hydra.output_subdir=null"]
        if change.startswith("data."):
            given.append("trainer.max_steps=14")
        assert run_command(main, *given) == 2, change
        assert words in capfd.readouterr().err
    for path, changed in before.items():
        if path.suffix == ".safetensors":
            assert path.stat().st_mtime_ns == changed
