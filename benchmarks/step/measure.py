"""Time, memory, and what the machine can do at best."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from vlmkit.training.meters.peak import Peak, measured_peak

MIB = 2**20


@dataclass(frozen=True)
class Ratios:
    """transformers' figure over ours, once per round."""

    values: Sequence[float]

    @property
    def speed(self) -> float:
        """Their median."""
        return median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """Least and largest."""
        return min(self.values), max(self.values)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one run: processor time of this process, or by the clock of a GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_added(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors alive at the peak of a run, beyond those before it, as the allocator counts them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    kineto = found.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in kineto.events() if event.name() == "[memory]"]
    live = highest = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Seconds of each in each round; who begins changes from round to round."""
    spent: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            gc.collect()
            spent[which].append(seconds((ours, theirs)[which], device))
    return spent


def gemm_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best matmul of this machine at this moment."""
    return measured_peak(device, dtype)
