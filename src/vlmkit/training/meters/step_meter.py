"""Speed, MFU, where the time of a step goes, memory, and how evenly ranks are loaded."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import lightning as L
import psutil
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vlmkit.batch import StepBatch
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.meters.flops import ModelFlops
from vlmkit.training.meters.peak import Peak, peak_of
from vlmkit.training.meters.timeline import OTHER, CudaClock, HostClock, Timeline
from vlmkit.training.meters.work import Work, work_of
from vlmkit.training.rank_groups import RankGroups

log = logging.getLogger(__name__)

GIB = 2**30
SECTIONS = ("data", "forward", "backward", "collective", "optimizer", OTHER)
NOT_TRAINING = ("validation", "save")


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """What one step of this rank was given."""

    tokens: float
    samples: float
    flops: float
    frame_pairs: float  # patches**2, summed over images and video frames

    @classmethod
    def of(cls, batch: StepBatch, flops: ModelFlops | None) -> StepCounts:
        """Count a step."""
        work = reduce(add, (work_of(micro) for micro in batch.micro_batches), Work())
        return cls(
            tokens=batch.num_tokens,
            samples=sum(micro.num_samples for micro in batch.micro_batches),
            flops=flops.total(work) if flops else 0.0,
            frame_pairs=work.frame_pairs,
        )


class StepMeter(Callback):
    """Logs what training does with its time, every `log_every_n_steps` of the trainer.

    A step lasts from the end of the step before to its own end, without validation and saving. Numbers
    are means over the last `window` steps; the first `warmup_steps` of a process are left out (kernels
    are chosen, graphs compiled, workers started). On CUDA, times are those of the GPU, read a step or two
    later so that nothing waits for them; elsewhere those of the host.

    train/tokens_per_s, train/samples_per_s   of all ranks; padding is no token
    train/step_s                              of the slowest rank
    train/mfu                                 FLOPs by definition (`meters.flops`) over the devices' peak
    time/<section>                            shares of the step on this rank; they add up to 1
    train/data_wait                           the same number as time/data
    memory/...                                largest so far on the GPU, or of the process now, in GiB
    balance/tokens, /frame_pairs, /step_s     over ranks, max / mean, mean over the steps since the last line

    The module must have `sections` (`vlmkit.training.sections.Sections`); FLOPs need its `model`.
    """

    def __init__(
        self,
        window: int = 50,
        warmup_steps: int = 3,
        peak_tflops: float | None = None,
    ) -> None:
        """Keep the settings.

        Args:
            window: steps that a mean is taken over.
            warmup_steps: first steps that no mean contains.
            peak_tflops: of one device, in 1e12 FLOP/s; None takes the data sheet's, or measures.
        """
        super().__init__()
        if window < 1 or warmup_steps < 0:
            raise ValueError(
                f"window {window} must be positive, warmup_steps {warmup_steps} not negative"
            )
        self.warmup_steps, self.peak_tflops = warmup_steps, peak_tflops
        self.sharing = (1, 1)
        self.peak: Peak | None = None
        self._flops: ModelFlops | None = None
        self._timeline: Timeline | None = None
        self._window: deque[tuple[StepCounts, Mapping[str, float]]] = deque(maxlen=window)
        self._untimed: deque[StepCounts] = deque()
        self._since_line: list[StepCounts] = []
        self._to_skip = warmup_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Walk through the model, find the peak, start the clock."""
        device = trainer.strategy.root_device
        self.sharing = sharing(trainer)
        model: Any = getattr(pl_module, "model", None)
        model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        if isinstance(model, Qwen3VL):
            self._flops = ModelFlops(model)
            self.peak = peak_of(device, compute_dtype(trainer, model), self.peak_tflops)
            if trainer.is_global_zero:
                log.info("MFU is a share of %.4g TFLOP/s: %s", self.peak.tflops, self.peak.source)
        elif trainer.is_global_zero:
            log.info("no MFU: FLOPs of %s are not known", type(model).__name__)
        self._to_skip = self.warmup_steps
        for kept in (self._window, self._untimed, self._since_line):
            kept.clear()
        first = self._timeline is None
        timeline = Timeline(CudaClock() if device.type == "cuda" else HostClock())
        self._timeline = timeline
        if first:
            sections: Any = pl_module.sections
            sections.attach(self)
        timeline.outside("data")

    def enter(self, name: str) -> None:
        """See `SectionObserver`."""
        if self._timeline is not None:
            self._timeline.enter(name)

    def leave(self, name: str, seconds: float) -> None:
        """See `SectionObserver`."""
        if self._timeline is not None:
            self._timeline.leave(name, seconds)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step has its data."""
        assert self._timeline is not None
        self._timeline.outside(OTHER)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Count the step; log what is known."""
        assert self._timeline is not None
        self._timeline.end_step()
        counts = StepCounts.of(batch, self._flops)
        self._untimed.append(counts)
        self._since_line.append(counts)
        for seconds in self._timeline.finished():
            timed = self._untimed.popleft()
            if self._to_skip:
                self._to_skip -= 1
            else:
                self._window.append((timed, seconds))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % max(every, 1) == 0:
            self._log(trainer, pl_module)
        self._timeline.outside("data")

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Validation is no part of a step."""
        if trainer.state.fn == "fit" and self._timeline is not None:
            self._timeline.outside("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Training waits for its next batch again."""
        if trainer.state.fn == "fit" and self._timeline is not None:
            self._timeline.outside("data")

    def _log(self, trainer: L.Trainer, pl_module: Any) -> None:
        row = rank_row(self._window, self._since_line)
        self._since_line.clear()
        rows = row[None]
        if trainer.world_size > 1:
            gathered = trainer.strategy.all_gather(row.to(trainer.strategy.root_device))
            rows = gathered.cpu()
        if not bool((rows[:, 0] > 0).all()):
            return  # on some rank no step beyond the warm-up has been timed
        metrics = {
            **speeds(rows, self.peak, *self.sharing),
            **shares([seconds for _, seconds in self._window]),
            **memory(trainer.strategy.root_device),
        }
        pl_module.log_dict({**metrics, "train/data_wait": metrics["time/data"]})


def rank_row(
    window: Sequence[tuple[StepCounts, Mapping[str, float]]], since_line: Sequence[StepCounts]
) -> Tensor:
    """What one rank tells the others: (4 + 2 * steps since the last line,) float64.

    Steps timed; seconds, tokens, samples and FLOPs of the mean step; then tokens and squared patches of
    each step since the last line.
    """
    num = max(len(window), 1)
    means = [
        float(len(window)),
        sum(step_seconds(seconds) for _, seconds in window) / num,
        *(sum(getattr(c, key) for c, _ in window) / num for key in ("tokens", "samples", "flops")),
    ]
    steps = [value for counts in since_line for value in (counts.tokens, counts.frame_pairs)]
    return torch.tensor(means + steps, dtype=torch.float64)


def sharing(trainer: L.Trainer) -> tuple[int, int]:
    """How many ranks are given the same samples, and how many of these count the same layers' FLOPs.

    Stages of a pipeline share samples and count the layers that each of them has.
    """
    ranks = RankGroups.of(trainer)
    per_batch = trainer.world_size // ranks.num_sample_ranks
    stages = math.prod(dist.get_world_size(group) for group in ranks.stages)
    return per_batch, per_batch // stages


def speeds(
    rows: Tensor, peak: Peak | None, ranks_per_batch: int = 1, ranks_per_layer: int = 1
) -> dict[str, float]:
    """Throughput, MFU and balance.

    Args:
        rows: (ranks, n) of `rank_row`.
        peak: of one device.
        ranks_per_batch: ranks that were given the same batch.
        ranks_per_layer: of these, ranks that count the same layers.
    """
    step_s, tokens, samples, flops = rows[:, 1:5].unbind(1)
    totals = {
        "train/tokens_per_s": (tokens / step_s).sum() / ranks_per_batch,
        "train/samples_per_s": (samples / step_s).sum() / ranks_per_batch,
        "train/step_s": step_s.max(),
    }
    if peak is not None:
        totals["train/mfu"] = (flops / step_s).mean() / ranks_per_layer / (peak.tflops * 1e12)
    if len(rows) > 1:
        steps = rows[:, 5:].unflatten(1, (-1, 2))  # (ranks, steps, 2)
        uneven = (steps.amax(0) / steps.mean(0)).nan_to_num(nan=1.0).mean(0)  # no pictures: even
        totals["balance/tokens"], totals["balance/frame_pairs"] = uneven.unbind()
        totals["balance/step_s"] = step_s.max() / step_s.mean()
    return {name: float(value) for name, value in totals.items()}


def shares(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Share of each section in the time of some steps, without validation and saving."""
    names = dict.fromkeys((*SECTIONS, *(name for seconds in steps for name in seconds)))
    sums = {
        name: sum(seconds.get(name, 0.0) for seconds in steps)
        for name in names
        if name not in NOT_TRAINING
    }
    whole = sum(sums.values())
    return {f"time/{name}": seconds / whole for name, seconds in sums.items()}


def step_seconds(seconds: Mapping[str, float]) -> float:
    """Length of a step without validation and saving."""
    return sum(value for name, value in seconds.items() if name not in NOT_TRAINING)


def memory(device: torch.device) -> dict[str, float]:
    """In GiB: the largest so far on a GPU; elsewhere the process, without its workers, now."""
    if device.type == "cuda":
        return {
            "memory/allocated_peak_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "memory/reserved_peak_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
    return {"memory/rss_gib": psutil.Process().memory_info().rss / GIB}


def compute_dtype(trainer: L.Trainer, model: torch.nn.Module) -> torch.dtype:
    """What matmuls run in: autocast's dtype, or that of the weights."""
    precision = str(trainer.precision)
    if precision.endswith("-mixed"):
        return torch.bfloat16 if precision.startswith("bf16") else torch.float16
    return next(model.parameters()).dtype
