"""Runs of a few steps in this process, what happens to them, and what they leave."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vlmkit.build import compose_config
from vlmkit.checkpoint.folder import CheckpointFolder
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.data.processor import Example, Plan, Processor
from vlmkit.train import train
from vlmkit.training.survival.spike_actions import SpikeAction
from vlmkit.training.survival.verdict import Verdict

VALIDATION = ("group_new_artist", "group_new_concepts", "count_new_concepts", "clip_new_moments")
SHORT = [
    "model=qwen3vl_tiny",
    "trainer.max_steps=8",
    "trainer.log_every_n_steps=1",
    "schedule.warmup_steps=2",
    "data.num_workers=0",
    "self_checks=none",
    "~logger.tensorboard",
    "~callbacks.meter",
    "~callbacks.progress",
    "~callbacks.what_ran",
    "checkpointing.every_n_steps=3",
    "checkpointing.store.keep_last=10",
    *(f"~data.validation.{name}" for name in VALIDATION),
]
ROWS = ["planner=rows", "planner.rows_per_step=3", "data.rows.row_tokens=256"]
SAMPLES = ["planner=samples", "planner.samples_per_step=5", "data.rows.row_tokens=192"]
CURVE = ("train/loss", "train/grad_norm", "train/lr", "train/tokens/drawing")


class Crash(Exception):
    """What a test does to a run."""


class CrashAt(Callback):
    """Raises before a step, or kills the process."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch.step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Crash(f"before step {self.step}")


class Watch(Callback):
    """Keeps weights and moments before steps, and what the steps hold."""

    runs: dict[str, Watch] = {}  # noqa: RUF012  (by name: a config can say no more)

    def __init__(self, name: str) -> None:
        self.runs[name] = self
        self.before: dict[int, dict[str, Tensor]] = {}
        self.members: dict[int, list[tuple[str, int]]] = {}
        self.num_micro_batches: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.before[batch.step] = weights_and_moments(pl_module.model, trainer.optimizers[0])
        self.members[batch.step] = [(m.source, m.key) for part in batch.members for m in part]
        self.num_micro_batches.append(len(batch.micro_batches))

    def on_train_end(self, trainer, pl_module) -> None:
        last = trainer.global_step
        self.before[last] = weights_and_moments(pl_module.model, trainer.optimizers[0])


class ForcedSpike:
    """A guard that sees a spike at given steps."""

    def __init__(self, steps: Sequence[int], action: SpikeAction) -> None:
        self.steps, self.action = tuple(steps), action

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        if step in self.steps:
            return self.action.on_spike(step, "a spike, as the test wishes")
        return self.action.otherwise(step)

    def state_dict(self) -> dict[str, Any]:
        return self.action.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.action.load_state_dict(state)


class PoisonedPlan(Plan):
    """Its pictures are not finite."""

    def load(self, out: Tensor | None = None) -> Example:
        example = super().load(out)
        example.patches.fill_(math.nan)
        return example


class PoisonedProcessor(Processor):
    """One sample of one source is poison."""

    def __init__(self, poison: Sequence[Any], **parts: Any) -> None:
        super().__init__(**parts)
        self.poison = tuple(poison)

    def plan(self, conversation, *arguments: Any, **options: Any) -> Plan:
        plan = super().plan(conversation, *arguments, **options)
        if (conversation.source, conversation.key) != self.poison:
            return plan
        return PoisonedPlan(**vars(plan))


def go(folder: Path, *overrides: str, planner: Sequence[str] = SAMPLES) -> None:
    """Start or go on with a run, as the command does."""
    train(compose_config(*SHORT, *planner, f"run_dir={folder}", "resume=true", *overrides))


def crash(folder: Path, step: int, *overrides: str, planner: Sequence[str] = SAMPLES) -> None:
    with pytest.raises(Crash):
        go(folder, *overrides, *crash_at(step), planner=planner)


def crash_at(step: int) -> list[str]:
    name = f"{CrashAt.__module__}.CrashAt"
    return [f"+callbacks.crash._target_={name}", f"+callbacks.crash.step={step}"]


def watched(name: str) -> list[str]:
    target = f"{Watch.__module__}.Watch"
    return [f"+callbacks.watch._target_={target}", f"+callbacks.watch.name={name}"]


def spike_at(*steps: int) -> list[str]:
    target = f"{ForcedSpike.__module__}.ForcedSpike"
    return [
        f"+guard.forced._target_={target}",
        f"+guard.forced.steps=[{','.join(map(str, steps))}]",
        "+guard.forced.action=${guard.spike.action}",
    ]


def poisoned(source: str, key: int) -> list[str]:
    target = f"{PoisonedProcessor.__module__}.PoisonedProcessor"
    return [f"processor._target_={target}", f"+processor.poison=[{source},{key}]"]


def weights_and_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer):
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            found[f"{names[id(parameter)]}/{slot}"] = torch.as_tensor(value).clone()
    return found


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def steps_of(folder: Path) -> list[int]:
    return CheckpointStore(folder / "checkpoints").complete()


def checkpoint_of(folder: Path, step: int) -> dict[str, Tensor]:
    """Weights, moments and tensors of callbacks."""
    found = CheckpointFolder(CheckpointStore(folder / "checkpoints").path(step)).verify()
    return {
        f"{stem}/{name}": tensor
        for stem in ("model", "optimizer", "state")
        for name, tensor in found.tensors(stem).items()
    }


def curve(folder: Path) -> list[tuple[Any, ...]]:
    """Loss and what else is a function of the run alone, step by step; no step comes up twice."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], *(line[k] for k in CURVE)) for line in lines if CURVE[0] in line]
    assert [line[0] for line in found] == list(range(len(found)))
    return found


def validations(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "time_s"}
        for line in lines
        if any(key.startswith("val/") for key in line)
    ]


def assert_same_runs(one: Path, other: Path) -> None:
    """Weights, moments, exported weights, losses and results are equal to the bit."""
    assert curve(one) == curve(other)
    assert validations(one) == validations(other)
    last = steps_of(other)[-1]
    assert steps_of(one)[-1] == last
    assert_same_tensors(checkpoint_of(one, last), checkpoint_of(other, last))
    exported = [(run / "checkpoint" / "model.safetensors").read_bytes() for run in (one, other)]
    assert exported[0] == exported[1]
    results = [RunFolder(run).read_results() for run in (one, other)]
    for result in results:
        result.pop("train_seconds")
    assert results[0] == results[1]
