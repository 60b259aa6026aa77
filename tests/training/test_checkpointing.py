"""A run that is interrupted, however it is composed, ends as one that never was."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlmkit
from tests.training.tiny_runs import (
    ROWS,
    SAMPLES,
    Watch,
    assert_same_runs,
    assert_same_tensors,
    checkpoint_of,
    crash,
    curve,
    go,
    steps_of,
    watched,
)
from vlmkit.build import build, build_model, compose_config
from vlmkit.checkpoint.folder import DiskFullError
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.errors import CheckpointError
from vlmkit.job import assemble
from vlmkit.runs import resumed_config
from vlmkit.train import train

Usage = namedtuple("Usage", "total used free")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Eight steps of five samples each."""
    folder = tmp_path_factory.mktemp("undisturbed")
    go(folder, *watched("undisturbed"))
    assert min(Watch.runs["undisturbed"].num_micro_batches) > 1
    return folder


COMPOSITIONS = {
    "rows, a worker": [*ROWS, "data.num_workers=1"],
    "averaging": [*SAMPLES, "averaging=ema"],
    "lora": [*SAMPLES, "lora=default"],
    "compiled": [*SAMPLES, "compile=blocks", "compile.backend=eager"],
    "recomputed": [*SAMPLES, "recompute=blocks"],
    "muon": [*SAMPLES, "optim=muon"],
    "bfloat16": [*SAMPLES, "optim=adamw_bf16", "precision=bf16_true"],
    "experts": [*SAMPLES, "model=qwen3vl_tiny_moe"],
}


@pytest.mark.parametrize("parts", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_a_resumed_run_is_one_that_never_stopped(parts, tmp_path):
    few = ["trainer.max_steps=4", "checkpointing.every_n_steps=2"]
    go(tmp_path / "whole", *few, planner=parts)
    crash(tmp_path / "broken", 3, *few, planner=parts)
    assert steps_of(tmp_path / "broken") == [2]
    go(tmp_path / "broken", *few, planner=parts)
    assert_same_runs(tmp_path / "broken", tmp_path / "whole")


def test_a_run_that_crashed_before_its_first_checkpoint_starts_again(undisturbed, tmp_path):
    crash(tmp_path, 2)
    assert steps_of(tmp_path) == []
    go(tmp_path)
    assert_same_runs(tmp_path, undisturbed)


def test_more_steps_continue_a_finished_run(tmp_path):
    go(tmp_path / "long", "schedule=constant")
    go(tmp_path / "short", "schedule=constant", "trainer.max_steps=5")
    train(resumed_config(tmp_path / "short", ["trainer.max_steps=8"]))
    assert_same_runs(tmp_path / "short", tmp_path / "long")


def test_a_damaged_checkpoint_is_refused_by_name_and_an_older_one_taken(
    undisturbed, tmp_path, caplog
):
    crash(tmp_path, 7)
    assert steps_of(tmp_path) == [3, 6]
    weights = tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        go(tmp_path)
    assert "checkpoint of step 6 is refused, taking an older one" in caplog.text
    assert str(weights) in caplog.text
    assert_same_runs(tmp_path, undisturbed)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(undisturbed, tmp_path, caplog, monkeypatch):
    real, calls = shutil.disk_usage, []

    def usage(path):
        calls.append(path)  # at the start, then at each save: that of step 3 finds no room
        return Usage(0, 0, 1) if len(calls) == 2 else real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    go(tmp_path)
    assert "step 3 is not saved" in caplog.text
    assert steps_of(tmp_path) == [6, 8]
    assert curve(tmp_path) == curve(undisturbed)


def test_a_run_that_could_not_save_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1))
    with pytest.raises(DiskFullError, match=r"takes about 0\.00 GiB, 0\.00 GiB are free"):
        go(tmp_path)


def test_a_frozen_decoder_stays_and_another_run_starts_from_parts(tmp_path, undisturbed):
    go(
        tmp_path / "frozen",
        *("learning_rates.decoder=null", "learning_rates.embedding=null", "trainer.max_steps=2"),
    )
    changes = RunFolder(tmp_path / "frozen").read_results()["components"]
    untouched = {name for name, hashes in changes.items() if hashes["before"] == hashes["after"]}
    assert untouched == {"decoder", "embedding"}
    assert {"merger", "vision", "fusion"} <= set(changes)

    def start(folder: str, *overrides: str) -> dict[str, torch.Tensor]:
        composed = compose_config(
            *("model=qwen3vl_tiny", f"run_dir={tmp_path}/x", "~logger.tensorboard"),
            *(f"start_from.folder={folder}", *overrides),
        )
        return assemble(composed).module.model.state_dict()

    stored = load_file(undisturbed / "checkpoint" / "model.safetensors")
    fresh = build_fresh()
    started = start(str(undisturbed), "start_from.only=['vision.*']")
    for name, tensor in started.items():
        expected = stored if name.startswith("vision.") else fresh
        assert torch.equal(tensor, expected[name]), name
    assert_same_tensors(start(str(undisturbed)), stored)
    at_six = start(f"{undisturbed}/checkpoints/step-00000006")
    assert_same_tensors({f"model/{k}": v for k, v in at_six.items()}, only_weights(undisturbed, 6))

    vlmkit.save_pretrained(vlmkit.load_run(undisturbed).model, tmp_path / "published")
    assert_same_tensors(start(str(tmp_path / "published")), stored)
    with pytest.raises(CheckpointError, match=r"no tensor is called vison\.\*"):
        start(str(undisturbed), "start_from.only=['vison.*']")
    with pytest.raises(CheckpointError, match=r"do not have the same tensors: .*fusion\."):
        start(str(undisturbed), "fusion=none")
    with pytest.raises(
        CheckpointError, match=r"embedding.weight is \[1024, 64\] there, \[1024, 32\]"
    ):
        start(str(undisturbed), "size.hidden_dim=32", "size.head_dim=8",
              "size.mrope_section=[2,1,1]")  # fmt: skip


def build_fresh() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model("model=qwen3vl_tiny").state_dict()


def only_weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return {k: v for k, v in checkpoint_of(folder, step).items() if k.startswith("model/")}


def test_adapters_are_merged_into_what_is_exported(tmp_path, tiny_batch):
    composed = ["lora=default", "trainer.max_steps=3", "optim.lr=0.01"]
    go(tmp_path, *composed)
    loaded = vlmkit.load_run(tmp_path).model
    assert_same_tensors(loaded.state_dict(), load_file(tmp_path / "checkpoint/model.safetensors"))
    assert not any("lora" in name for name in loaded.state_dict())
    adapted = build_model("model=qwen3vl_tiny")
    build(compose_config("model=qwen3vl_tiny", *composed).lora)(adapted)
    stored = {k.removeprefix("model/"): v for k, v in only_weights(tmp_path, 3).items()}
    adapted.load_state_dict(stored)
    assert any(v.abs().max() > 0 for k, v in stored.items() if "lora_B" in k)
    with torch.no_grad():
        difference = (adapted.eval().logits(tiny_batch) - loaded.logits(tiny_batch)).abs().max()
    assert difference < 1e-5


def test_the_average_is_what_is_exported(tmp_path):
    go(tmp_path, "averaging=ema", "trainer.max_steps=3")
    exported = load_file(tmp_path / "checkpoint" / "model.safetensors")
    last = checkpoint_of(tmp_path, 3)
    averages = {
        k.partition("averages")[2].strip("/."): v for k, v in last.items() if "averages" in k
    }
    assert (
        averages.keys()
        == exported.keys()
        == {k.removeprefix("model/") for k in only_weights(tmp_path, 3)}
    )
    assert_same_tensors(averages, exported)
    assert any(not torch.equal(v, last[f"model/{k}"]) for k, v in exported.items())
