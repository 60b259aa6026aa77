"""What becomes of bad steps within a run: left out, slowed down, or gone back from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.commands import run_command
from tests.training.tiny_runs import (
    ROWS,
    SAMPLES,
    Watch,
    assert_same_runs,
    assert_same_tensors,
    checkpoint_of,
    crash,
    go,
    poisoned,
    spike_at,
    steps_of,
    watched,
)
from vlmkit.replay import main as replay
from vlmkit.training.survival.incidents import read_incident

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Total length of"),
]


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> dict[str, dict[int, list[tuple[str, int]]]]:
    """Which samples a step holds, by planner."""
    found = {}
    for name, planner in (("samples", SAMPLES), ("rows", ROWS)):
        folder = tmp_path_factory.mktemp(name)
        go(folder, *watched(name), "trainer.max_steps=5", planner=planner)
        found[name] = Watch.runs[name].members
    return found


@pytest.mark.parametrize(
    ("name", "planner"), [("samples", SAMPLES), ("rows", ROWS)], ids=["samples", "rows"]
)
def test_a_step_that_is_not_finite_is_left_out_and_can_be_taken_again(
    name, planner, members, tmp_path, capfd
):
    source, key = next(each for each in members[name][4] if each[0] == "drawing")
    run, composed = tmp_path / "run", [*poisoned(source, key), *watched("poisoned")]
    go(run, *composed, planner=planner)
    before = Watch.runs["poisoned"].before
    assert_same_tensors(before[5], before[4])
    assert not torch.equal(*(before[k]["decoder.embedding.weight"] for k in (5, 6)))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in before[8].values())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert [step for step, loss in losses.items() if loss is None] == [4]

    (path,) = run.glob("incidents/*.json")
    incident = read_incident(path)
    assert (incident.step, incident.rank) == (4, 0)
    assert incident.reason == "loss is nan and gradient norm is nan"
    assert (source, key) in [(m.source, m.key) for m in incident.samples]
    assert incident.data_state["order"]["step"] == 4

    # a resumed run leaves the same step out, and counts it
    crash(tmp_path / "broken", 6, *composed, planner=planner)
    go(tmp_path / "broken", *composed, planner=planner)
    assert_same_runs(tmp_path / "broken", run)

    capfd.readouterr()
    assert run_command(replay, f"incident={path}") == 0
    said = capfd.readouterr().out
    assert "tokens and pixels are those of the step" in said
    assert "first number that is not finite: the output of vision.patch_embed" in said
    assert said.count("nan") >= 1
    assert f"{source}" in said
    assert "will differ" not in said


def test_a_spike_that_is_left_out_touches_nothing(tmp_path):
    go(tmp_path, "guard=skip", *spike_at(4), *watched("skip"), "trainer.max_steps=6")
    before = Watch.runs["skip"].before
    assert_same_tensors(before[5], before[4])
    assert not torch.equal(*(before[k]["decoder.embedding.weight"] for k in (5, 6)))
    (path,) = tmp_path.glob("incidents/*.json")
    assert read_incident(path).reason == "a spike, as the test wishes"


def test_a_lower_rate_scales_the_update_and_lasts_over_a_resume(tmp_path):
    composed = ["guard=lower_rate", "guard.spike.action.num_steps=3", *spike_at(1)]
    composed += ["guard.spike.action.factor=0.25", "schedule=constant", "trainer.max_steps=6"]
    go(tmp_path / "whole", *composed)
    assert rates_of(tmp_path / "whole") == pytest.approx([2e-4, 1e-4, 1e-4, 1e-4, 4e-4, 4e-4])
    crash(tmp_path / "broken", 3, *composed)  # one step with the lower rate is left
    assert steps_of(tmp_path / "broken") == [3]
    go(tmp_path / "broken", *composed)
    assert_same_runs(tmp_path / "broken", tmp_path / "whole")


@pytest.fixture(scope="module")
def unspiked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unspiked")
    go(folder, "trainer.max_steps=11")
    return folder


def rates_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/lr"] for line in lines if "train/lr" in line]


def averages_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    found = checkpoint_of(run, step).items()
    return {k.partition("averages")[2].strip("/."): v for k, v in found if "averages" in k}


@pytest.mark.parametrize(
    ("back", "averaging", "stop"), [(1, "ema", 10), (2, "none", 8)], ids=["last", "before last"]
)
def test_going_back_restores_a_checkpoint_and_goes_on_after_the_spike(
    back, averaging, stop, tmp_path, unspiked
):
    composed = ["guard=roll_back", f"guard.spike.action.back={back}", *spike_at(7)]
    composed += [f"averaging={averaging}", "trainer.max_steps=11"]
    run = tmp_path / "whole"
    go(run, *composed, *watched("back"))
    watch = Watch.runs["back"]
    origin = 6 if back == 1 else 3
    assert_same_tensors(watch.before[8], watch.before[origin])
    whole = [6] if back == 1 else []  # checkpoints later than the origin are gone
    assert steps_of(run) == [3, *whole, 9, 11]
    assert sorted(watch.members) == list(range(11))  # no data a second time
    assert rates_of(run) == rates_of(unspiked)  # the schedule goes on
    if averaging == "ema":
        expected = averages_of(run, origin) if origin in steps_of(run) else None
        assert expected is not None
        for count, step in enumerate((8, 9), start=origin):  # after steps 7, which went back, and 8
            weights = watch.before[step]
            for name, average in expected.items():  # decay as it warms up
                average.lerp_(weights[name], 1 - (1 + count) / (10 + count))
        assert_same_tensors(averages_of(run, 9), expected)
    crash(tmp_path / "broken", stop, *composed)  # after going back and one more checkpoint, or none
    go(tmp_path / "broken", *composed)
    assert_same_runs(tmp_path / "broken", run)


def test_without_a_checkpoint_there_is_no_going_back(tmp_path, caplog):
    go(tmp_path, "guard=roll_back", *spike_at(1), *watched("none"), "trainer.max_steps=3")
    assert "there are 0 checkpoints, none to go 1 back to" in caplog.text
    before = Watch.runs["none"].before
    assert_same_tensors(before[2], before[1])
