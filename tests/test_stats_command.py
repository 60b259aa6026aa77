"""What the data hold, through the command line: numbers, tables that training takes, and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.commands import run_command
from vlmkit.build import build, compose_config
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.data.sizes.size_table import SizeTable
from vlmkit.errors import ConfigError
from vlmkit.stats import main

SOURCE = '''
"""Rows with a box each, some of them unusable; they say what they hold."""

import time
from pathlib import Path

from vlmkit.data.media import ImageFile
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart


class Pictures:
    def __init__(self, folder, size, name="", slow_s=0.0):
        self.folder, self.size, self.slow_s = Path(folder), size, slow_s
        self.fingerprint = f"pictures {name}"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        time.sleep(self.slow_s)
        media = () if index % 4 == 3 else (ImagePart(ImageFile(self.folder / f"{index % 3}.png")),)
        words = "where " * (index % 50)
        turns = [Message(role="user", parts=(*media, TextPart(words)))]
        for _ in range(1 + index % 3):
            box = '[{"bbox_2d": [10, 20, 300, 400], "label": "it"}]'
            turns.append(Message(role="assistant", parts=(TextPart(box),)))
        if index % 100 == 99:
            turns = turns[:1]
        return Conversation(messages=tuple(turns), key=index, origin=f"rows:{index}")


class Unbounded(Pictures):
    def __len__(self):
        return 10**9
'''

DATA = """
# @package _global_
defaults: [_base, _self_]
processor:
  image: {min_pixels: 1024, max_pixels: 65536}
data:
  rows: {row_tokens: 200}
  mixture:
    parts:
      boxes:
        _target_: vlmkit.data.order.mixture.Weighted
        weight: 3
        source: {_target_: mine_stats.Pictures, folder: pictures, size: 400, name: boxes, slow_s: 0}
        over_length: [{_target_: vlmkit.data.order.over_length.DropTurns}]
      points:
        _target_: vlmkit.data.order.mixture.Weighted
        source: {_target_: mine_stats.Pictures, folder: pictures, size: 90, name: points}
  validation:
    held: {_target_: mine_stats.Pictures, folder: pictures, size: 30, name: held}
"""

ARGUMENTS = (
    "--config-dir=mine", "model=qwen3vl_tiny", "data=mine", "planner=rows", "data.skips.file=null"
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a source, its pictures and its config."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "mine_stats.py").write_text(SOURCE)
    (folder / "mine" / "data").mkdir(parents=True)
    (folder / "mine" / "data" / "mine.yaml").write_text(DATA)
    (folder / "pictures").mkdir()
    for i, size in enumerate([(64, 64), (200, 100), (90, 300)]):
        Image.fromarray(np.full((size[1], size[0], 3), 99, np.uint8)).save(
            folder / "pictures" / f"{i}.png"
        )
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def numbers_in(out: Path) -> dict:
    return json.loads((out / "stats.json").read_text())


def test_everything_is_measured_and_training_takes_the_sizes(here, capsys):
    unit = (
        "data.mixture.unit._target_=vlmkit.data.order.mixture.TokenUnit"  # which needs sizes itself
    )
    assert run_command(main, *ARGUMENTS, unit, "out=all", "write_sizes=true", "workers=0") == 0
    printed = capsys.readouterr().out
    for words in (
        "cannot be used", "longer than a row of 200 tokens", "by DropTurns", "coordinates by source",
        f"data.mixture.sizes={here / 'all' / 'sizes'}", "rows:99", "mixture", "busy",
    ):  # fmt: skip
        assert words in printed
    numbers = numbers_in(here / "all")
    boxes = numbers["sources"]["boxes"]
    assert (boxes["samples"], boxes["measured"]) == (400, 400)
    assert boxes["unusable"]["nothing_scored"] == 4
    assert boxes["usable"] == 400 - sum(boxes["unusable"].values())
    assert boxes["text_only_share"] == pytest.approx(0.25, abs=0.02)
    assert boxes["longer_than_a_row"]["made_to_fit"]["DropTurns"]["count"] > 0
    assert boxes["images"]["aspect_ratio"]["max"] == 2
    assert numbers["sources"]["val/held"]["measured"] == 30
    steps = numbers["training"]
    assert steps["planner"] == "FixedRows"
    assert 0.8 < steps["row_fill"] <= 1
    assert steps["steps_per_epoch"] == pytest.approx(
        steps["samples_per_epoch"] / steps["samples_per_step"]
    )
    assert set(steps["ranks"]) == {"1", "8", "64"}
    assert steps["ranks"]["1"]["evenness"] == 1
    assert numbers["coordinates"]["boxes"]["shapes"] > 400
    with Image.open(here / "all" / "lengths.png") as figure:
        assert min(figure.size) > 200

    sizes = f"data.mixture.sizes={here / 'all' / 'sizes'}"
    data: VLMDataModule = build(compose_config(*ARGUMENTS[1:], unit, sizes, config_dir="mine").data)
    assert data.mixture.shares.tolist() == pytest.approx(
        [part["share_of_samples"] for part in steps["mixture"].values()]
    )
    assert steps["mixture"]["boxes"]["share_of_tokens"] == pytest.approx(0.75, abs=0.02)
    table = SizeTable.load(here / "all" / "sizes" / "boxes.parquet")
    assert data.mixture.parts["boxes"].sizes.codes.tolist() == table.codes.tolist()
    steps_of_rank = data.training_steps()
    for step, ticket in zip(
        range(3), data.planner.tickets(data.samples, data.planner.start()), strict=False
    ):
        rows = ticket.rows
        batch = steps_of_rank[ticket]
        assert batch.step == step
        assert batch.num_tokens == sum(
            int(data.samples.sizes(np.array(row))[0].tokens.sum()) for row in rows.rows
        )
        assert {item.code for item in batch.skipped} <= {"nothing_scored", "too_long"}
        assert not any("changed since" in item.message for item in batch.skipped)
    with pytest.raises(ConfigError, match="row_tokens was 200, now it is 300"):
        build(
            compose_config(
                *ARGUMENTS[1:], sizes, "data.rows.row_tokens=300", config_dir="mine"
            ).data
        )


def test_a_limit_takes_samples_from_everywhere(here, capsys):
    code = run_command(main, *ARGUMENTS, "out=few", "limit=40", "sources=[boxes,val/held]")
    assert code == 0
    numbers = numbers_in(here / "few")
    assert list(numbers["sources"]) == ["boxes", "val/held"]
    assert numbers["sources"]["boxes"]["measured"] == 40
    assert numbers["sources"]["boxes"]["tokens"]["max"] > 150
    assert "training" not in numbers  # points are missing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sources=[boxs]"], "there is no boxs; there are boxes, points, val/held"),
        (["write_sizes=true", "limit=3"], "write_sizes=true measures all samples: leave limit out"),
        (
            ["write_sizes=true", "data.mixture.parts.points.source._target_=mine_stats.Unbounded"],
            "points has 1,000,000,000 samples: it makes them up",
        ),
        (["limt=3"], "limt: there is no such key. Did you mean limit"),
    ],
)
def test_what_is_wrong_is_said(here, capsys, arguments, words):
    assert run_command(main, *ARGUMENTS, "out=wrong", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (here / "wrong" / "stats.json").exists()


def test_what_training_would_refuse_is_said(here, capsys):
    none = "data.mixture.parts.points.source.size=0"
    assert run_command(main, *ARGUMENTS, "out=none", none, "limit=20") == 0
    assert "training would not work: Mixture: the sources ['points']" in capsys.readouterr().out


def test_the_quickstart_is_described_from_some_samples(tmp_path, capsys):
    sources = "sources=[drawing,group_new_artist]"
    assert run_command(main, "model=qwen3vl_tiny", f"out={tmp_path}", sources, "limit=50") == 0
    numbers = numbers_in(tmp_path)
    assert numbers["sources"]["drawing"]["endless"]
    assert numbers["sources"]["drawing"]["measured"] == 50
    assert numbers["sources"]["drawing"]["images"]["width"]["p50"] == 64
    assert "endless" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_stood_and_leaves_no_process(folder):
    """The kill cannot be caught; the processes that measure must notice it themselves."""
    slow = "data.mixture.parts.boxes.source.slow_s=0.02"
    command = [
        sys.executable, "-m", "vlmkit.stats", *ARGUMENTS, "out=killed", "write_sizes=true",
        "sources=[boxes]", "workers=2", slow,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    shards = folder / "killed" / "measured"
    deadline = time.monotonic() + 200
    while not list(shards.glob("boxes-*/*.npz")):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(started.pid).children(recursive=True)
    assert len(children) >= 3  # two that measure, and the server that forked them
    started.send_signal(signal.SIGKILL)
    started.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("boxes-*/*.npz")}
    assert 0 < len(kept) < 4
    again = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    assert len(list(shards.glob("boxes-*/*.npz"))) == 4
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert len(SizeTable.load(folder / "killed" / "sizes" / "boxes.parquet")) == 400
