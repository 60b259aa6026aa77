"""Derived files: whole or absent, whoever writes them and whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from vlmkit.data.sources import cache
from vlmkit.data.sources.cache import cache_folder, cached, check_space
from vlmkit.errors import ConfigError


def load(path) -> str:
    text = path.read_text()
    if not text.startswith("whole"):
        raise ValueError("damaged")
    return text


def get(state: str, kind: str = "k") -> str:
    return cached(kind, "subject", state, lambda path: path.write_text(f"whole {state}"), load)


def files(kind: str = "k") -> list[str]:
    return [path.name for path in cache_folder(kind).iterdir() if path.suffix != ".lock"]


def test_written_once_for_each_state_and_old_states_are_removed():
    assert get("1") == "whole 1"
    assert cached("k", "subject", "1", lambda path: pytest.fail("written again"), load) == "whole 1"
    assert get("2") == "whole 2"
    assert len(files()) == 1


def test_a_damaged_file_is_made_anew():
    get("1", "damaged")
    (name,) = files("damaged")
    (cache_folder("damaged") / name).write_text("half")
    assert get("1", "damaged") == "whole 1"


def test_an_error_leaves_nothing():
    def fail(path):
        path.write_text("ha")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("error", "subject", "1", fail, load)
    assert files("error") == []


KILLED = """
import sys, time
from vlmkit.data.sources.cache import cached
def write(path):
    path.write_text("ha")
    print("writing", flush=True)
    time.sleep(60)
cached("killed", "subject", "1", write, lambda path: path.read_text())
"""


def test_after_a_kill_the_next_one_starts_afresh():
    child = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(files("killed")) == 1  # what was half written
    assert get("1", "killed") == "whole 1"
    assert len(files("killed")) == 1


def _race(folder: str) -> str:
    def write(path):
        with open(os.path.join(folder, "written"), "a") as log:
            log.write("x")
        time.sleep(0.3)
        path.write_text("whole")

    return cached("race", "subject", "1", write, load)


def test_of_several_processes_one_writes(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_race, [str(tmp_path)] * 3) == ["whole"] * 3
    assert (tmp_path / "written").read_text() == "x"


def test_where_there_are_no_locks_it_works_as_well(monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(cache.fcntl, "flock", refuse)
    assert get("1", "lockless") == "whole 1"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be written.*set XDG_CACHE_HOME"):
        get("1")


def test_space_is_checked_before_work_begins():
    check_space("k", 1, "a copy")
    with pytest.raises(ConfigError, match=r"a copy takes about 1000000.0 GB .* are free: set XDG"):
        check_space("k", 10**15, "a copy")
