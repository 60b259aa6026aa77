"""The step benchmark compares equal work, notices unequal work, and ends with one JSON line."""

from __future__ import annotations

import json
import sys

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import generation, train_step
from benchmarks.generation import Work
from benchmarks.step.cases import CASES, GOALS
from benchmarks.step.distillation import DistillationPart
from benchmarks.step.side import check, worst_gradient
from benchmarks.step.training import TrainingPart
from benchmarks.step.vision import VisionPart
from benchmarks.step.work import RAGGED, Sample

from vlmkit.batch import IGNORED_LABEL
from vlmkit.checkpoint.parity_cases import Image, Video

CPU = torch.device("cpu")
DENSE, EXPERTS = ("model=qwen3vl_tiny",), ("model=qwen3vl_tiny_moe",)
FEW = (Sample([3], 4), Sample([4, Image(2, 2), 2], 5), Sample([2, Video(2, 1, 2), 3], 3))
TOYS = {
    "realistic_sft": {"fp32": TrainingPart(DENSE, FEW)},
    "realistic_sft_32k": {
        "fp32": TrainingPart(DENSE, FEW),
        "bf16": TrainingPart(DENSE, FEW, precision=torch.bfloat16, tolerance=0.1),
    },
    "equal_work": {"fp32": TrainingPart(DENSE, [Sample([1], 9)] * 2)},
    "vision": {
        "video": VisionPart(DENSE, [Video(3, 2, 2)]),
        "images": VisionPart(DENSE, [Image(2, 2), Image(1, 3)]),
    },
    "moe": {"fp32": TrainingPart(EXPERTS, FEW, tolerance=1e-3)},
    "distillation": {"fp32": DistillationPart(20, 130, 8, 12, temperature=2.0)},
}


def sides(part, folder):
    part.prepare(folder)
    return part.ours(folder, CPU), part.theirs(folder, CPU)


@pytest.mark.parametrize("case", CASES)
def test_a_case_ends_with_its_json(case, monkeypatch, capsys):
    assert TOYS[case].keys() == CASES[case].keys()
    monkeypatch.setattr(train_step, "CASES", TOYS)
    monkeypatch.setattr(sys, "argv", ["train_step", "--case", case, "--rounds", "2"])
    train_step.main()
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert set(last) == {case}
    entry = last[case]
    parts = entry.get("parts", {"": entry})
    left_out = printed.count("LEFT OUT: this CPU multiplies bfloat16 in software")
    assert len(parts) + left_out == len(CASES[case])
    assert left_out <= (case == "realistic_sft_32k")
    for part in (entry, *parts.values()):
        low, high = part["spread"]
        assert 0 < low <= part["speed"] <= high
        assert part["memory"] > 0
    assert entry["speed"] == min(part["speed"] for part in parts.values())
    assert entry["memory"] == max(part["memory"] for part in parts.values())
    assert "round 2 of 2" in printed
    assert "of the best matmul" in printed


def test_generation_is_a_case_too(monkeypatch, capsys):
    works = {"decode": {}, "rollout": {"rollout": Work(prompts=[[5]], samples=2, new_tokens=3)}}
    monkeypatch.setattr(generation, "cases", lambda **_: works)
    monkeypatch.setattr(generation, "SMALL", DENSE)
    monkeypatch.setattr(sys, "argv", ["train_step", "--case", "rollout", "--rounds", "1"])
    train_step.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last["rollout"]) == {"speed", "memory", "spread"}


@pytest.mark.parametrize("part", TOYS["realistic_sft_32k"].values(), ids=["fp32", "bf16"])
def test_another_weight_is_noticed(part, tmp_path):
    ours, theirs = sides(part, tmp_path)
    check(ours, theirs, part)
    with torch.no_grad():
        ours.model.decoder.layers["0"].attention.o_proj.weight.mul_(1.2)
    with pytest.raises(AssertionError, match="differ"):
        check(ours, theirs, part)


@pytest.mark.parametrize(
    "part", [VisionPart(DENSE, [Video(2, 2, 2)]), DistillationPart(9, 50, 8, 12, temperature=2.0)]
)
def test_a_wrong_gradient_is_noticed(part, tmp_path, monkeypatch):
    ours, theirs = sides(part, tmp_path)
    found = ours.gradients

    def with_one_wrong():
        gradients = found()
        name = max(gradients, key=lambda name: float(gradients[name].norm()))
        return {**gradients, name: gradients[name] * 1.01}

    monkeypatch.setattr(ours, "gradients", with_one_wrong)
    with pytest.raises(AssertionError, match="gradients differ"):
        check(ours, theirs, part)


def test_a_gradient_that_only_one_side_has_is_noticed():
    theirs = {"a": torch.ones(3)}
    assert worst_gradient({"a": torch.ones(3), "unused": torch.zeros(2)}, theirs) == 0
    with pytest.raises(AssertionError, match="vlmkit alone"):
        worst_gradient({"a": torch.ones(3), "unused": torch.ones(2)}, theirs)
    with pytest.raises(KeyError):
        worst_gradient({}, theirs)


def test_the_realistic_batch_is_what_the_case_says():
    part = CASES["realistic_sft"]["fp32"]
    assert part.samples is RAGGED
    mask, labels = part.inputs["attention_mask"].bool(), part.inputs["labels"]
    assert 0.15 <= int((labels != IGNORED_LABEL).sum()) / int(mask.sum()) <= 0.30
    # a padded batch of eight fills 47 % of its slots in benchmarks/results/data.md
    assert float(mask.float().mean()) >= 0.47
    assert {"pixel_values", "pixel_values_videos"} <= part.inputs.keys()


def test_every_part_has_a_goal():
    for case, parts in CASES.items():
        assert all(case in GOALS or f"{case}/{name}" in GOALS for name in parts)
