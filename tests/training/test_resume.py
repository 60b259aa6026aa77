"""A run that goes on from a checkpoint of Lightning takes the steps of one that never stopped."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from vlmkit.build import build, build_model, compose_config

ROWS = ["planner=rows", "planner.rows_per_step=2", "data.rows.row_tokens=512"]
SAMPLES = ["planner=samples", "planner.samples_per_step=4"]


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ids = sum(int(micro.input_ids.sum()) for micro in batch.micro_batches)
        self.seen.append((batch.step, ids, float(trainer.callback_metrics["train/loss"])))


def run(folder: Path, planner: list[str], workers: int, resume: bool = False):
    torch.manual_seed(0)
    config = compose_config(
        "model=qwen3vl_tiny", f"run_dir={folder}", *planner, "trainer.max_steps=6",
        f"data.num_workers={workers}", "schedule.warmup_steps=2",
    )  # fmt: skip
    data = build(config.data)
    data.validation = {}
    model = build_model(config=config)
    module = build(config.module, model=model, source_names=data.mixture.names)
    recorder = Recorder()
    trainer = L.Trainer(
        max_steps=6,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[
            recorder,
            ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}"),
        ],
    )
    checkpoint = folder / "step=3.ckpt"
    trainer.fit(module, data, ckpt_path=checkpoint if resume else None, weights_only=False)
    return recorder.seen, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("planner", [SAMPLES, ROWS], ids=["samples", "rows"])
@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")
def test_a_resumed_run_takes_the_steps_of_one_that_never_stopped(planner, tmp_path):
    whole, expected = run(tmp_path, planner, workers=2)
    rest, weights = run(tmp_path, planner, workers=0, resume=True)
    assert [step for step, _, _ in whole] == list(range(6))
    assert rest == whole[3:]
    assert torch.equal(weights, expected)
