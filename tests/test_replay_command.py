"""A step of a run, taken again from its incident."""

from __future__ import annotations

import math

import pytest

from tests.commands import run_command
from tests.training.tiny_runs import go, spike_at
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.replay import main as replay
from vlmkit.training.survival.incidents import read_incident

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


def test_a_finite_step_comes_out_of_a_replay_as_it_was(tmp_path, capfd):
    go(tmp_path, *spike_at(4), "trainer.max_steps=5", "step_guard.incidents.keep_weights=0")
    (path,) = tmp_path.glob("incidents/*.json")
    incident = read_incident(path)
    assert incident.weights is None
    assert run_command(replay, f"incident={path}") == 0
    said = capfd.readouterr().out
    assert "weights of the step were not kept" in said  # those of step 3 are near
    assert "first number that is not finite: none" in said
    CheckpointStore(tmp_path / "checkpoints").remove(3)
    assert run_command(replay, f"incident={path}") == 2
    assert "neither weights nor a checkpoint before step 4" in capfd.readouterr().err


@pytest.mark.parametrize(
    "precision",
    [[], ["optim=adamw_bf16", "precision=bf16_true"], ["precision=bf16_mixed"]],
    ids=["float32", "bf16_true", "bf16_mixed"],
)
def test_a_replay_has_the_gradient_norms_of_the_step(precision, tmp_path, capfd):
    composed = [*precision, "lora=default", "lora.dropout=0.5"]
    go(tmp_path, *spike_at(2), *composed, "trainer.max_steps=3")
    (path,) = tmp_path.glob("incidents/*.json")
    incident = read_incident(path)
    assert run_command(replay, f"incident={path}") == 0
    said = capfd.readouterr().out
    assert "tokens and pixels are those of the step" in said
    for name, norm in incident.grad_norms.items():
        (line,) = [line.split() for line in said.splitlines() if line.split()[:1] == [name]][-1:]
        now, then = (float(word) for word in line[1:3])
        assert math.isfinite(norm)
        assert then == pytest.approx(norm, rel=1e-5)
        assert now == pytest.approx(norm, rel=1e-5)
