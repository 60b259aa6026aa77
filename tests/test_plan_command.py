"""`python -m vlmkit.plan`, and a dry run of train."""

from __future__ import annotations

import json
import logging

import pytest

from tests.commands import run_command
from tests.training.tiny_runs import SAMPLES, SHORT
from vlmkit.build import compose_config
from vlmkit.plan import planned, planner_for, show
from vlmkit.planning.comparison import PredictedAndMeasured
from vlmkit.train import main, train

TINY = ["model=qwen3vl_tiny", "planning.samples=8"]


def test_a_plan_is_printed_and_written(tmp_path, capsys):
    overrides = [*TINY, "parallel=fsdp", "planning.ranks=4"]
    config = compose_config(
        *overrides, f"run_dir={tmp_path}", "planning.stages=[s0_align]", config_name="plan"
    )
    show(planned(config, overrides), config)
    printed = capsys.readouterr().out
    for words in (
        "headers of 24 samples",
        "memory of the fullest rank",
        "layouts compared",
        "GPU-hours",
    ):
        assert words in printed
    numbers = json.loads((tmp_path / "plan.json").read_text())
    assert numbers["plan"]["ranks"] == 4
    assert numbers["plan"]["fits"]
    assert numbers["stages"][0]["tokens"] == 67e9
    assert {d["device"]["name"] for d in numbers["devices"]} == {"H100", "H200", "B200", "A100"}


def test_a_dry_run_plans_and_trains_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    assert (
        run_command(
            main, *TINY, "dry_run=true", f"run_dir={folder}", f"hydra.run.dir={tmp_path}/log"
        )
        == 0
    )
    assert "predicted step" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["plan.json"]


def test_data_that_cannot_be_read_are_assumed_and_said(tmp_path):
    config = compose_config(
        "model=qwen3vl_tiny", "stage=s1_multimodal", f"data_root={tmp_path}", config_name="plan"
    )
    source = planner_for(config).micro.source
    assert source.startswith("assumed: 50%")
    assert "the data could not be read" in source


def test_after_a_run_predicted_and_measured_stand_side_by_side(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vlmkit")
    found: list[PredictedAndMeasured] = []
    end = PredictedAndMeasured.on_train_end

    def remember(self, trainer, module):
        end(self, trainer, module)
        found.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictedAndMeasured, "on_train_end", remember)
        train(
            compose_config(
                *SHORT, *SAMPLES, "planning.samples=64", "planning.compare=true", "score_before=false",
                "samples_per_source=0", "trainer.accelerator=cpu", f"run_dir={tmp_path}",
            )
        )  # fmt: skip
    predicted, measured = found[0].result["TFLOP per step"]
    assert predicted == pytest.approx(measured, rel=0.5)
    assert found[0].result["step, s"][1] > 0
    predicted, measured = found[0].result["peak memory, GiB"]
    assert predicted == pytest.approx(measured, rel=0.1)  # measured: -6.1 %
