"""All cases, the most important first: with little time the last ones are left out."""

from __future__ import annotations

from benchmarks.on_gpu.bench import Bench, Case
from benchmarks.on_gpu.ceilings import ceilings
from benchmarks.on_gpu.correctness import correctness
from benchmarks.on_gpu.experts import experts
from benchmarks.on_gpu.kernels import attention, losses
from benchmarks.on_gpu.training import train


def _train(name: str) -> Case:
    def run(bench: Bench) -> None:
        train(bench, bench.scale.steps[name])

    return Case(run, *_TRAINING[name])


_TRAINING = {
    "train_2b": (80.0, "full training of 2B, packs of 8K tokens"),
    "train_4b": (90.0, "full training of 4B, packs of 8K tokens"),
    "lora_8b": (80.0, "LoRA on 8B, packs of 8K tokens"),
    "train_2b_32k": (60.0, "full training of 2B, packs of 32K tokens"),
}

CASES = {
    "ceilings": Case(ceilings, 10.0, "what the device can do at best"),
    "correctness": Case(correctness, 60.0, "a small model against the CPU in float32"),
    "train_2b": _train("train_2b"),
    "lora_8b": _train("lora_8b"),
    "experts": Case(experts, 60.0, "decoder layers of 30B-A3B"),
    "train_4b": _train("train_4b"),
    "attention": Case(attention, 40.0, "attention kernels"),
    "losses": Case(losses, 30.0, "loss kernels"),
    "train_2b_32k": _train("train_2b_32k"),
}
