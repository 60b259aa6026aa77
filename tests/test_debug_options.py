"""Debug options, experiments and trainers: through the command line, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.commands import run_command
from tests.test_train_command import SHORT, command
from vlmkit import train
from vlmkit.build import compose_config, options_of
from vlmkit.fusion.base import Fusion

TINY = [text for text in SHORT if not text.startswith("trainer.")]


def logged(folder: Path, key: str) -> list[float]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_fast_dev_run_goes_through_all_that_a_run_does(capsys):
    assert run_command(train.main, *TINY, "debug=fast_dev_run", "run_dir=run") == 0
    run = Path("run")
    assert len(logged(run, "train/loss")) == 2
    assert (run / "checkpoints" / "step-00000002").is_dir()
    for name in ("results.json", "plots/loss.png", "plots/samples.png", "what_ran.json"):
        assert (run / name).stat().st_size > 0, name
    assert "self-check" in capsys.readouterr().out


def test_overfit_learns_the_samples_of_one_step_by_heart():
    changes = ["trainer.max_steps=60", "optim.lr=4e-3", "trainer.log_every_n_steps=10"]
    off = ["self_checks=none", "planner.samples_per_step=4"]
    code = run_command(train.main, *TINY, "debug=overfit", *changes, *off, "run_dir=run")
    assert code == 0
    losses = logged(Path("run"), "train/loss")
    assert losses[0] > 2
    assert losses[-1] < 0.1  # measured 0.020


def test_profile_writes_a_trace_with_sections_and_prints_operators(capsys):
    off = ["self_checks=none", "trainer.max_steps=4", "callbacks.trace.skip_steps=2"]
    one = ["callbacks.trace.num_steps=1"]
    assert run_command(train.main, *TINY, "debug=profile", *off, *one, "run_dir=run") == 0
    events = json.loads(Path("run/trace-rank0.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"section: forward", "section: backward", "section: optimizer", "aten::mm"} <= names
    assert "aten::mm" in capsys.readouterr().out


class NaNGradient(Fusion):
    """Harmless forward; backward is 0 * inf."""

    def forward(self, hidden, layer_idx, visual):
        return hidden + (0 * hidden).sqrt()


def test_anomaly_names_the_operation_that_made_a_nan(capfd):
    Path("mine/fusion").mkdir(parents=True)
    Path("mine/fusion/bad_root.yaml").write_text("_target_: tests.test_debug_options.NaNGradient\n")
    off = ["self_checks=none", "trainer.max_steps=1", "run_dir=run"]
    code = run_command(
        train.main, "--config-dir=mine", *TINY, "fusion=bad_root", "debug=anomaly", *off
    )
    assert code == 1
    assert "SqrtBackward0' returned nan" in capfd.readouterr().err


@pytest.mark.parametrize("name", options_of("experiment"))
def test_experiments_survive_a_step(name):
    off = ["debug=fast_dev_run", "trainer.max_steps=1", "self_checks=none"]
    code = run_command(train.main, *TINY, f"experiment={name}", *off, "run_dir=run")
    assert code == 0
    assert len(logged(Path("run"), "train/loss")) == 1


def test_debug_wins_over_experiments_and_stages():
    config = compose_config("experiment=muon", "stage=s0_align", "debug=fast_dev_run")
    assert config.trainer.max_steps == 2
    assert config.planner.rows_per_step == 512
    assert "MuonAdamW" in config.optim.optimizer._target_


@pytest.mark.parametrize("name", options_of("trainer"))
def test_trainers_share_their_base(name):
    config = compose_config(f"trainer={name}")
    assert config.trainer._target_ == "lightning.Trainer"
    assert config.trainer.max_steps == 420


@pytest.mark.parametrize("extra", [[], ["--resolve"]])
def test_the_composed_config_can_be_read_with_overrides(extra, capsys):
    assert run_command(train.main, "--cfg", "job", *extra, "debug=overfit") == 0
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.repeated_planner.num_steps == 1
    assert config.data.planner.planner.samples_per_step == 32


def test_hydras_own_options_are_not_taken_for_typing_mistakes(capsys):
    of_hydra = ["hydra/launcher=basic", "hydra.sweep.dir=x", "hydra.sweeper.max_batch_size=2"]
    assert run_command(train.main, "--cfg", "hydra", *of_hydra) == 0
    assert "BasicLauncher" in capsys.readouterr().out


TWO_RANKS = [
    *TINY, "planner.samples_per_step=16", "data.rows.row_tokens=512", "parallel=ddp", "trainer.max_steps=2",
    "trainer.accelerator=cpu", "parallel.replicate=2", "trainer.log_every_n_steps=1", "self_checks=none",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.distributed
def test_one_command_trains_on_two_ranks_in_one_folder(tmp_path):
    done = command("train", *TWO_RANKS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.glob("runs/*/*"))) == 1
    (results,) = tmp_path.rglob("results.json")
    assert len(logged(results.parent, "train/loss")) == 2
    assert done.stdout.count("exact match; trained") == 1
    assert done.stdout.count(" component ") == 1
    again = command("train", f"run={results.parent}", "trainer.max_steps=3", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(logged(results.parent, "train/loss")) == 3


LAUNCHED = {
    "torchrun": {
        "TORCHELASTIC_RUN_ID": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    },
    "srun": {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"},
}


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_launched_processes_need_a_run_folder_in_common(launcher, monkeypatch, capsys):
    for name, value in LAUNCHED[launcher].items():
        monkeypatch.setenv(name, value)
    assert run_command(train.main, *TWO_RANKS) == 2
    assert "2 processes were started" in capsys.readouterr().err
