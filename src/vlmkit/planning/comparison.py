"""After a run: what was predicted beside what was measured."""

from __future__ import annotations

import logging
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vlmkit.batch import StepBatch
from vlmkit.training.meters.flops import ModelFlops
from vlmkit.training.meters.step_meter import GIB, StepCounts, sharing

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Numbers of a plan.

    Attributes:
        step_s: seconds of a step.
        flops_per_step: of all ranks, by definition.
        peak_bytes: of the rank that holds most.
    """

    step_s: float
    flops_per_step: float
    peak_bytes: float


class PredictedAndMeasured(Callback):
    """Says at the end how far a plan was from the run: memory (on CUDA), step time, FLOPs.

    Args:
        prediction: of the plan.
        warmup_steps: first steps that are left out.
    """

    def __init__(self, prediction: Prediction, warmup_steps: int = 3) -> None:
        super().__init__()
        self.prediction, self.warmup_steps = prediction, warmup_steps
        self.seconds: list[float] = []
        self.flops: list[float] = []
        self.result: dict[str, tuple[float, float]] = {}
        self._flops: ModelFlops | None = None
        self._start = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin."""
        self._flops = ModelFlops(pl_module.model)
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Stop it: on CUDA steps queue up, and the mean over many is that of the device."""
        self.seconds.append(time.perf_counter() - self._start)
        self.flops.append(StepCounts.of(batch, self._flops).flops)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compare, and say so."""
        if len(self.seconds) <= self.warmup_steps:
            return
        cuda = trainer.strategy.root_device.type == "cuda"
        kept = self.seconds[self.warmup_steps :]
        self.result = {
            "TFLOP per step": (
                self.prediction.flops_per_step / 1e12,
                self._flops_of_all(trainer) / 1e12,
            ),
            "step, s": (self.prediction.step_s, statistics.mean(kept)),
            "peak memory, GiB": (
                self.prediction.peak_bytes / GIB,
                torch.cuda.max_memory_allocated() / GIB if cuda else math.nan,
            ),
        }
        if trainer.is_global_zero:
            for name, (predicted, measured) in self.result.items():
                far = "not measured" if math.isnan(measured) else f"{predicted / measured - 1:+.1%}"
                log.info("%s: predicted %.4g, measured %.4g (%s)", name, predicted, measured, far)

    def _flops_of_all(self, trainer: L.Trainer) -> float:
        mean = torch.tensor(statistics.mean(self.flops), dtype=torch.float64)
        if trainer.world_size == 1:
            return float(mean)
        _, ranks_per_layer = sharing(trainer)
        summed = trainer.strategy.all_gather(mean.to(trainer.strategy.root_device)).sum()
        return float(summed) / ranks_per_layer
