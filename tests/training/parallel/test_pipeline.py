"""Ranks that have decoder layers each take the steps of one process."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from tests.samples import PAD_ID, image_example, text_example, two_images_example, video_example
from tests.training.ranks import run_on_ranks
from vlmkit.batch import StepBatch
from vlmkit.build import build, build_model, compose_config
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.training.checkpoint_io import SafeCheckpointIO
from vlmkit.training.parallel.divide import DivideModule
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.pipeline_stage import plan_stages, split_layers
from vlmkit.training.parallel.strategy import MeshStrategy
from vlmkit.training.parallel.whole import whole_state
from vlmkit.training.vlm_module import VLMModule

# rows of the micro-batches of two shares of a step: uneven in number, kind and length; packed; text alone
SHARES = [
    [
        [[text_example(0, answer=9), image_example(1)], [text_example(10)]],
        [[text_example(4), text_example(6, answer=2)]],
        [[two_images_example(2)]],
    ],
    [[[video_example(3), image_example(5, answer=7)]], [[text_example(7, answer=5)]]],
]
LAYOUTS: dict[int, dict[str, dict[str, int]]] = {
    2: {
        "1f1b": {"pipeline": 2},
        "interleaved_experts": {"pipeline": 2, "virtual_stages": 2},
        "interleaved": {"pipeline": 2, "virtual_stages": 2},
    },
    4: {
        "1f1b": {"pipeline": 4},
        "interleaved_zero1": {"pipeline": 2, "shard": 2, "virtual_stages": 2, "zero": 1},
        "1f1b_experts": {"pipeline": 2, "shard": 2, "expert": 2},
        "interleaved_hsdp": {"pipeline": 2, "replicate": 2, "virtual_stages": 2},
        "interleaved_tensor": {"pipeline": 2, "tensor": 2, "virtual_stages": 2},
    },
}
DENSE, EXPERTS = "qwen3vl_tiny", "qwen3vl_tiny_moe"
LOSSES = ("per_sample", "per_token", "sqrt_token")


def model_of(name: str) -> str:
    return EXPERTS if name.endswith("experts") else DENSE


class Data(L.LightningDataModule):
    def __init__(self, shares: list[Any], steps: int) -> None:
        super().__init__()
        self.shares, self.steps = shares, steps

    def train_dataloader(self, most: int = 3) -> DataLoader[Any]:
        assert self.trainer is not None
        of = self.trainer.distributed_sampler_kwargs or {}
        mine = self.shares[of.get("rank", 0) :: of.get("num_replicas", 1)]
        batches = tuple(
            collate(rows, pad_id=PAD_ID, merge_size=2) for share in mine for rows in share[:most]
        )
        steps = [
            StepBatch(step=step, micro_batches=batches, tokens={}, samples={})
            for step in range(self.steps)
        ]
        return DataLoader(steps, batch_size=None, collate_fn=lambda x: x)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader(most=2)  # equally many on all ranks, as scoring has it


class FirstGradient(L.Callback):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 0:
            for name, parameter in pl_module.model.named_parameters():
                gradient = parameter.grad
                if gradient is not None and hasattr(gradient, "full_tensor"):
                    gradient = gradient.full_tensor()
                self.found[name] = gradient.clone()


def module_of(loss: str, model: str, num_layers: int = 5) -> VLMModule:
    torch.manual_seed(0)
    config = compose_config(
        f"model={model}", f"loss={loss}", "run_dir=none", "optim.lr=1e-3", "optim.clip_norm=0.5",
        "+optim.optimizer.eps=1e-4", "schedule=constant", "schedule.warmup_steps=0", "guard=log",
        "size.tie_embeddings=false", f"size.num_layers={num_layers}", "loss.z_coefficient=0.01",
        *(["language.balancing.coefficient=0.1"] if model == EXPERTS else []),
    )  # fmt: skip
    return build(
        config.module, model=build_model(config=config), guard=None, validation_names=["all"]
    )


def fit(
    loss: str,
    layout: dict[str, int] | None,
    steps: int,
    start: Path | None = None,
    model: str = "qwen3vl_tiny",
    shares: list[Any] = SHARES,
    num_layers: int = 5,
    epoch: int = 3,
    changes: Sequence[Callable[[nn.Module], None]] = (),
):
    strategy = "auto" if layout is None else MeshStrategy(Layout(**layout), DivideModule(changes))
    gradient = FirstGradient()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1 if layout is None else dist.get_world_size() if dist.is_initialized() else 4,
        strategy=strategy,
        plugins=[SafeCheckpointIO()],
        callbacks=[gradient],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    module = module_of(loss, model, num_layers)
    trainer.fit(module, Data(shares, epoch), ckpt_path=None if start is None else str(start))
    return trainer, module, gradient.found


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() <= expected.keys()
    return max((float((found[n] - expected[n]).abs().max()) for n in found), default=0.0)


def numbers(trainer: L.Trainer) -> dict[str, float]:
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def compare(folder: Path, world: int) -> None:
    """Write what each layout has found."""
    faulthandler.dump_traceback_later(200, exit=True)  # stages that wait for each other say where
    dist.init_process_group("gloo")
    found = {}
    for number, (name, layout) in enumerate(LAYOUTS[world].items()):
        loss, model = LOSSES[number % 3], model_of(name)
        trainer, module, gradient = fit(loss, layout, 3, model=model)
        weights = whole_state(module.model)
        found[name] = (loss, model, numbers(trainer), weights, gradient)
    torch.save(found, folder / f"found{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 4])
def test_stages_take_the_steps_of_one_process(world, tmp_path):
    for done in run_on_ranks(
        "tests.training.parallel.test_pipeline:compare", world, tmp_path, world=world
    ):
        assert done.returncode == 0, done.stderr[-4000:]
    alone: dict[tuple[str, str], Any] = {}
    seen: dict[str, set[str]] = {}
    for rank in range(world):
        found = torch.load(tmp_path / f"found{rank}.pt", weights_only=False)
        for name, (loss, model, metrics, weights, gradient) in found.items():
            if (loss, model) not in alone:
                trainer, module, whole = fit(loss, None, 3, model=model)
                alone[loss, model] = (numbers(trainer), module.model.state_dict(), whole)
            expected, state, expected_gradient = alone[loss, model]
            worst = difference(weights, state), difference(gradient, expected_gradient)
            print(name, rank, worst)
            if rank == 0:
                assert weights.keys() == state.keys()
            # measured: weights 1.2e-7, gradients 5.6e-9
            assert max(worst) < 2e-6, (name, rank, worst)
            seen.setdefault(name, set()).update(gradient)
            for key, value in metrics.items():
                assert value == pytest.approx(expected[key], rel=1e-5, abs=1e-6, nan_ok=True), (
                    name,
                    key,
                )
    for name in LAYOUTS[world]:
        assert seen[name] == alone[found[name][:2]][2].keys()


def test_layers_are_split_evenly_with_all_that_vision_feeds_on_the_first_stage():
    assert split_layers(36, 4) == [range(9), range(9, 18), range(18, 27), range(27, 36)]
    assert split_layers(5, 4, at_least_first=2) == [range(2), range(2, 3), range(3, 4), range(4, 5)]
    assert [len(layers) for layers in split_layers(28, 8, at_least_first=3)] == [
        3, 3, 3, 3, 4, 4, 4, 4,
    ]  # fmt: skip
    assert split_layers(3, 1) == [range(3)]
    with pytest.raises(
        ConfigError, match=r"2 pipeline stages take at least 3 decoder layers \(2 on"
    ):
        split_layers(2, 2, at_least_first=2)


@pytest.mark.parametrize(
    ("overrides", "frozen", "message"),
    [
        (("size.num_layers=2",), "", "take at least 3 decoder layers"),
        (("size.tie_embeddings=true",), "", "embedding and head are one matrix"),
        ((), "decoder", "nothing on rank 1 of the pipeline is trained"),
    ],
)
def test_what_cannot_be_divided_is_refused(overrides, frozen, message):
    model = build_model(
        "model=qwen3vl_tiny", "size.num_layers=5", "size.tie_embeddings=false", *overrides, device="meta"
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    with pytest.raises(ConfigError, match=message):
        plan_stages(model, Layout(pipeline=2))


def test_virtual_stages_are_refused_where_they_are_none():
    with pytest.raises(ConfigError, match=r"parallel.virtual_stages is 0"):
        Layout(pipeline=2, virtual_stages=0)
