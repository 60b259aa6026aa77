"""A trainer on any layout takes the steps of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader

from tests.samples import PAD_ID, image_example, text_example, two_images_example, video_example
from tests.training.ranks import run_on_ranks
from vlmkit.batch import StepBatch
from vlmkit.build import build, build_model, compose_config
from vlmkit.data.collate import collate
from vlmkit.training.checkpoint_io import SafeCheckpointIO
from vlmkit.training.parallel.divide import DivideModule
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.strategy import MeshStrategy
from vlmkit.training.parallel.whole import whole_state
from vlmkit.training.vlm_module import VLMModule

# micro-batches of four shares of a step: uneven in number and kind; text alone in the first and the last
SHARES = [
    [[text_example(0, answer=9)], [text_example(4), text_example(6, answer=2)]],
    [[image_example(1), two_images_example(2)]],
    [[video_example(3)], [image_example(5, answer=7)], [text_example(9)]],
    [[text_example(7, answer=5), text_example(8)]],
]
LAYOUTS: dict[str, dict[str, int]] = {
    "fsdp": {"shard": 4},
    "zero1": {"shard": 4, "zero": 1},
    "zero2": {"shard": 4, "zero": 2},
    "hsdp": {"replicate": 2, "shard": 2},
    "tp_fsdp": {"tensor": 2, "shard": 2},
}


class Steps:
    """Gives a trainer the micro-batches of its share."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def loader(self, share: int, num_shares: int) -> DataLoader[Any]:
        mine = [part for shares in SHARES[share::num_shares] for part in shares]
        batches = tuple(collate([part], pad_id=PAD_ID, merge_size=2) for part in mine)
        steps = [
            StepBatch(step=step, micro_batches=batches, tokens={}, samples={})
            for step in range(self.num_steps)
        ]
        return DataLoader(steps, batch_size=None, collate_fn=lambda x: x)  # type: ignore[arg-type]


class Data(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        share = self.trainer.distributed_sampler_kwargs or {}
        return Steps(3).loader(share.get("rank", 0), share.get("num_replicas", 1))


def module_of(loss: str) -> VLMModule:
    torch.manual_seed(0)
    config = compose_config(
        "model=qwen3vl_tiny", f"loss={loss}", "run_dir=none", "optim.lr=1e-3", "optim.clip_norm=0.5",
        "+optim.optimizer.eps=1e-4", "schedule=constant", "schedule.warmup_steps=0", "guard=log",
        "size.tie_embeddings=false",
    )  # fmt: skip
    return build(config.module, model=build_model(config=config), guard=None)


def trainer_of(layout: dict[str, int] | None, steps: int) -> L.Trainer:
    strategy = "auto" if layout is None else MeshStrategy(Layout(**layout), DivideModule())
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1 if layout is None else 4,
        strategy=strategy,
        plugins=[SafeCheckpointIO(copied=layout is None)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def fit(loss: str, layout: dict[str, int] | None, steps: int):
    trainer, module = trainer_of(layout, steps), module_of(loss)
    trainer.fit(module, Data())
    return trainer, module


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def compare(folder: Path) -> None:
    """Write the worst differences from one process, by layout and loss."""
    losses = ("per_sample", "per_token", "sqrt_token")
    first = {}
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        loss = losses[number % 3]
        trainer, module = fit(loss, layout, 3)
        weights = whole_state(module.model)
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        first[name] = (loss, metrics, weights)
    if dist.get_rank() == 0:
        torch.save((first, str(folder)), folder / "found.pt")


@pytest.mark.distributed
def test_a_trainer_on_any_layout_takes_the_steps_of_one_process(tmp_path):
    for done in run_on_ranks("tests.training.parallel.test_strategy:compare", 4, tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    found, _ = torch.load(tmp_path / "found.pt", weights_only=False)
    alone = {}
    for name, (loss, metrics, weights) in found.items():
        if loss not in alone:
            trainer, module = fit(loss, None, 3)
            alone[loss] = (trainer.callback_metrics, module.model.state_dict())
        expected, state = alone[loss]
        worst = difference(weights, state)
        print(name, worst, json.dumps({k: abs(v - float(expected[k])) for k, v in metrics.items()}))
        assert worst < 2e-6, name
        for key, value in metrics.items():
            assert value == pytest.approx(float(expected[key]), rel=1e-5, abs=1e-6, nan_ok=True), (
                name,
                key,
            )
