"""After a run: what was predicted beside what was measured."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vlmkit.batch import StepBatch
from vlmkit.planning.live_bytes import LiveBytes
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
    """Says at the end how far a plan was from the run: memory, step time, FLOPs.

    On CUDA the allocator knows the peak. On a CPU tensors are counted as operations make and drop them, in a
    few steps after the warm-up, which are not timed; the largest peak stands.

    Args:
        prediction: of the plan.
        warmup_steps: first steps that are left out.
        watches_host: count tensors of CPU steps.
        watched_steps: number of them.
    """

    def __init__(
        self,
        prediction: Prediction,
        warmup_steps: int = 3,
        watches_host: bool = False,
        watched_steps: int = 3,
    ) -> None:
        super().__init__()
        self._watched = range(warmup_steps, warmup_steps + watched_steps * watches_host)
        self._live: LiveBytes | None = None
        self._host_peak = math.nan
        self._number = -1
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
        self._number += 1
        if self._number in self._watched:
            self._live = LiveBytes().__enter__()
            optimizers = trainer.optimizers
            states = [state for optimizer in optimizers for state in optimizer.state.values()]
            held = [*pl_module.parameters(), *_tensors(states), *_tensors(batch)]
            for tensor in held:
                self._live.count(tensor)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Stop it: on CUDA steps queue up, and the mean over many is that of the device."""
        if self._live is not None:
            self._stop_watching()
        else:
            self.seconds.append(time.perf_counter() - self._start)
        self.flops.append(StepCounts.of(batch, self._flops).flops)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave operations alone again."""
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            peak, self._live = self._live.peak, None
            # not max(): nothing compares with nan
            self._host_peak = peak if not self._host_peak > peak else self._host_peak

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
                (torch.cuda.max_memory_allocated() if cuda else self._host_peak) / GIB,
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


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    """In batches, states, and whatever holds them."""
    if isinstance(held, torch.Tensor):
        yield held
    elif is_dataclass(held) and not isinstance(held, type):
        yield from _tensors(list(vars(held).values()))
    elif isinstance(held, Mapping):
        yield from _tensors(list(held.values()))
    elif isinstance(held, list | tuple):
        for item in held:
            yield from _tensors(item)
