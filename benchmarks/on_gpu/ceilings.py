"""What the device can do at best: a matrix product and a copy, on random data."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from benchmarks.on_gpu.bench import Bench
from benchmarks.step.measure import seconds


def matmul_tflops(device: torch.device, side: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Median of several; on random numbers, since constant ones take less power and run faster."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    inner = 10 if device.type == "cuda" else 1

    def work() -> None:
        for _ in range(inner):
            a @ b

    work()
    spent = median(seconds(work, device) for _ in range(5))
    return 2 * side**3 * inner / max(spent, 1e-9) / 1e12


def ceilings(bench: Bench) -> None:
    """Print them."""
    for dtype in (torch.bfloat16, torch.float32):
        rate = matmul_tflops(bench.device, bench.scale.matmul, dtype)
        name = str(dtype).removeprefix("torch.")
        bench.row(what=f"{bench.scale.matmul}^3 matrix product, {name}", unit="TFLOP/s", value=rate)
    source = torch.randn(bench.scale.copy_bytes // 4, device=bench.device)
    target = torch.empty_like(source)
    target.copy_(source)
    spent = median(seconds(lambda: target.copy_(source), bench.device) for _ in range(10))
    moved = 2 * bench.scale.copy_bytes / max(spent, 1e-9) / 1e9
    bench.row(what="copy on the device, read and written", unit="GB/s", value=moved)


def wall(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds by the clock, until the device is done: for what the host does, such as compiling."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
