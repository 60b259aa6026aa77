"""Time and memory of two ways to do the same, and what the machine can do at best."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20
GEMM_S = 0.3  # of matmuls, to find the best


@dataclass(frozen=True)
class Comparison:
    """What both sides took."""

    seconds: tuple[Sequence[float], Sequence[float]]  # vlmkit, transformers; one per round
    added: tuple[int, int]  # bytes at the peak, beyond those before

    @property
    def ratios(self) -> list[float]:
        """transformers' seconds over vlmkit's, by round."""
        return [theirs / ours for ours, theirs in zip(*self.seconds, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Median of the ratios, vlmkit's share of the memory, least and largest ratio."""
        ratios = self.ratios
        return {
            "speed": round(median(ratios), 3),
            "memory": round(self.added[0] / self.added[1], 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        }


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, device: torch.device
) -> Comparison:
    """Memory, then time, in turn; a line for each round. Both have run once before."""
    added = (peak_added(ours, device), peak_added(theirs, device))
    print(
        f"  peak added: vlmkit {added[0] / MIB:.0f} MiB, transformers {added[1] / MIB:.0f} MiB",
        flush=True,
    )
    spent: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            gc.collect()
            spent[which].append(seconds((ours, theirs)[which], device))
        left, right = spent[0][-1], spent[1][-1]
        print(
            f"  round {i + 1} of {rounds}: vlmkit {left:.3f} s, transformers {right:.3f} s, "
            f"ratio {right / left:.2f}",
            flush=True,
        )
    return Comparison(seconds=spent, added=added)


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


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The best matmul of this machine at this moment, FLOP per second of the kind that `seconds` counts."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    spent: list[float] = []
    while len(spent) < 3 or (sum(spent) < GEMM_S and len(spent) < 100):
        spent.append(seconds(lambda: torch.mm(a, b), device))
    return 2 * side**3 / min(spent)


def missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why products in `dtype` make no sense on this machine, in words; None: they do."""
    if dtype is None or device.type != "cpu":
        return None
    half, full = gemm_rate(device, dtype), gemm_rate(device, torch.float32)
    if half >= full:
        return None
    return (
        f"this CPU multiplies {str(dtype).removeprefix('torch.')} in software: {half / 1e9:.1f} GFLOP/s, "
        f"float32 {full / 1e9:.0f}"
    )
