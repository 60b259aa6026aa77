"""Runs one case in a process of its own."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

import torch
from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.cases import CASES
from benchmarks.on_gpu.scale import FULL, TOY

NO_CUDA = "no CUDA in this process"


def work(name: str, device: str, toy: bool, file: str, seconds: float, threads: int) -> None:
    """Run a case and leave its findings in a file, whatever happens."""
    torch.set_num_threads(threads)
    bench = Bench(torch.device(device), TOY if toy else FULL, Path(file), seconds)
    bench.write()
    try:
        if bench.on_gpu:
            try:
                torch.zeros(1, device=device)
            except Exception as error:
                bench.found["status"] = NO_CUDA
                bench.fail(name, f"{type(error).__name__}: {str(error).splitlines()[0]}")
                return
        CASES[name].run(bench)
        bench.found["status"] = "failed" if bench.found["errors"] else "done"
    except BaseException as error:
        traceback.print_exc()
        bench.found["status"] = "failed"
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        bench.fail(name, f"{type(error).__name__}: {text[:300]}")
    finally:
        bench.found["host_cpu_s"] = time.process_time()
        bench.write()
