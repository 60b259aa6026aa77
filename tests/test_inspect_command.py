"""`python -m vlmkit.inspect`, as a user calls it."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.commands import run_command
from vlmkit import inspect
from vlmkit.build import build, compose_config
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.inspection.view import Kind

command = partial(run_command, inspect.main)

SMALL = ("model=qwen3vl_tiny", "planner.samples_per_step=6", "data.rows.row_tokens=512")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the command leaves in its working directory, it is not the repository."""
    monkeypatch.chdir(tmp_path)


def test_the_quickstart_can_be_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*SMALL, "step=3") == 0
    written = capsys.readouterr()
    pages = sorted(path.name for path in (tmp_path / "inspect").iterdir())
    assert pages
    assert all(name.startswith("step-3-batch-") for name in pages)
    assert f"page: inspect/{pages[0]}" in written.out
    assert "<|im_start|>user" in written.out
    text = (tmp_path / "inspect" / pages[0]).read_text(encoding="utf-8")
    assert "planner.samples_per_step=6" in text  # how the command was called
    assert [path.name for path in tmp_path.iterdir()] == ["inspect"]


def test_every_option_of_train_is_one_here(tmp_path: Path) -> None:
    assert command(*SMALL, "planner=rows", "temporal=t_rope", "out=p", "text_samples=0") == 2
    assert command(*SMALL[:1], "planner=rows", "planner.rows_per_step=2", "temporal=t_rope",
                   "data.rows.row_tokens=512", "out=p", "text_samples=0") == 0  # fmt: skip
    assert len(list((tmp_path / "p").iterdir())) == 2


def test_a_run_is_looked_at_with_its_own_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose_config(*SMALL, f"run_dir={tmp_path / 'run'}", "seed=4")
    files = RunFolder(tmp_path / "run")
    files.path.mkdir()
    OmegaConf.save(config, files.config, resolve=True)
    assert command(f"run={files.path}", "out=theirs") == 0
    assert command(*SMALL, "seed=4", "out=ours") == 0
    theirs, ours = (sorted((tmp_path / name).iterdir()) for name in ("theirs", "ours"))
    assert len(theirs) == len(ours)
    for their, our in zip(theirs, ours, strict=True):
        # but for the line that says where it came from
        assert _body(their) == _body(our)
    assert sorted(path.name for path in files.path.iterdir()) == ["config.yaml"]
    capsys.readouterr()
    assert command(f"run={files.path}", "seed=5") == 2
    assert "brings its own config: leave out seed=5" in capsys.readouterr().err


def _body(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("</dl>")[1]


def test_mistakes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run=nowhere") == 2
    assert "nowhere is not a run folder" in capsys.readouterr().err
    assert command("step=-1") == 2
    assert "give a step from 0" in capsys.readouterr().err
    assert command("rank=1") == 2
    assert "a rank below world_size" in capsys.readouterr().err
    assert command("stepp=1") == 2
    assert "Did you mean step" in capsys.readouterr().err


def test_it_shows_what_training_gets() -> None:
    config = compose_config(*SMALL, "data.rows.rows_per_micro_batch=2", config_name="inspect")
    data = build(config.data)
    batches = inspect.micro_batches(data, step=1)
    loader = data.training_steps()
    tickets = data.planner.tickets(data.samples, data.planner.start())
    step = loader[next(islice(tickets, 1, None))]
    assert len(batches) == len(step.micro_batches)
    for shown, micro in zip(batches, step.micro_batches, strict=True):
        assert [row.ids.tolist() for row in shown.rows] == micro.input_ids.tolist()
        assert shown.count(Kind.PADDING) == micro.num_padding
    assert sum(n for b in batches for n, _ in b.sources.values()) == sum(step.samples.values())


def test_ranks_share_a_step() -> None:
    config = compose_config(*SMALL[:1], "planner.samples_per_step=12", "data.rows.row_tokens=256",
                            config_name="inspect")  # fmt: skip
    data = build(config.data)
    both = [inspect.micro_batches(data, 0, rank, 2) for rank in range(2)]
    alone = inspect.micro_batches(data, 0)
    ids = [sorted(str(row.ids.tolist()) for b in part for row in b.rows) for part in (*both, alone)]
    assert sorted(ids[0] + ids[1]) == ids[2]
