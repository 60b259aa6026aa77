"""A training step beside transformers: same weights, same samples, same loss and gradients.

python -m benchmarks.train_step
python -m benchmarks.train_step --case moe --rounds 3

Loss and gradients are compared before anything is timed. Both sides then work in turn within a round, on one
thread by default; seconds are processor time on a CPU and of CUDA events on a GPU. `speed` is the median over
rounds of transformers' seconds over vlmkit's, `memory` vlmkit's peak of live tensor bytes during a step over
transformers'. The last line is one JSON object: {case: {"speed", "memory", "spread"}}; of a case with
several parts the worst of each stands there, and all stand below "parts".
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import gc
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.step.cases import CASES
from benchmarks.step.measure import MIB, Ratios, gemm_peak, in_turn, peak_added
from benchmarks.step.side import Part, check

GENERATION = ("decode", "rollout")


def measure(part: Part, rounds: int, device: torch.device) -> dict[str, Any]:
    """Compare results, then memory, then time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part.prepare(folder)
        ours, theirs = part.ours(folder, device), part.theirs(folder, device)
    loss_error, gradient_error = check(ours, theirs, part.tolerance)
    print(
        f"  equal: loss to {loss_error:.1e}, gradients to {gradient_error:.1e} "
        f"(allowed {part.tolerance:.0e})",
        flush=True,
    )
    added = [peak_added(side.step, device) for side in (ours, theirs)]
    print(f"  peak added: vlmkit {added[0] / MIB:.0f} MiB, transformers {added[1] / MIB:.0f} MiB")
    spent = in_turn(ours.step, theirs.step, rounds, device)
    ratios = Ratios([theirs / ours for ours, theirs in zip(*spent, strict=True)])
    for what, values in zip(("vlmkit", "transformers"), spent, strict=True):
        print(f"  {what}: {min(values):.3f} to {max(values):.3f} s", flush=True)
    if (flops := ours.flops()) is not None:
        peak = gemm_peak(device, part.precision or torch.float32)
        reached = flops / min(spent[0]) / 1e12
        print(
            f"  vlmkit: {flops / 1e9:.0f} GFLOP, {reached / peak.tflops:.0%} of "
            f"{peak.tflops * 1000:.0f} GFLOP/s ({peak.source})"
        )
    return {
        "speed": round(ratios.speed, 3),
        "memory": round(added[0] / added[1], 3),
        "spread": [round(value, 3) for value in ratios.spread],
    }


def worst(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One entry for a case: its only part, or the least speed and most memory of all."""
    if len(parts) == 1:
        return dict(next(iter(parts.values())))
    slowest = min(parts.values(), key=lambda part: part["speed"])
    return {**slowest, "memory": max(part["memory"] for part in parts.values()), "parts": parts}


def run_case(case: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """All parts of a case."""
    found = {}
    for name, part in CASES[case].items():
        print(f"{case}, {name}: {part.describe()}", flush=True)
        found[name] = measure(part, rounds, device)
        print(f"  {found[name]}", flush=True)
        gc.collect()
    return worst(found)


def main() -> None:
    """Run one case or all."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=(*CASES, *GENERATION))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    results = {
        case: run_case(case, options.rounds, device)
        for case in CASES
        if options.case in (None, case)
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
