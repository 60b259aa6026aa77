"""A training step beside transformers: same weights, same samples, same loss and gradients.

python -m benchmarks.train_step
python -m benchmarks.train_step --case moe --rounds 3

Cases are in `benchmarks/step/cases.py`; `decode` and `rollout` are those of `benchmarks.generation`.
Loss and gradients (there: tokens) are compared before anything is timed. Both sides then work in turn
within a round, on one thread by default; seconds are processor time on a CPU and of CUDA events on a GPU.
`speed` is the median over rounds of transformers' seconds over vlmkit's, `memory` vlmkit's peak of live
tensor bytes during a step over transformers'. The last line is one JSON object: {case: {"speed", "memory",
"spread"}}; of a case with several parts the worst of each stands there, and all stand
below "parts". A CPU without bfloat16 instructions leaves parts in bfloat16 out, and says so.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its starts otherwise

import argparse
import gc
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks import generation
from benchmarks.step.cases import CASES, GOALS
from benchmarks.step.measure import compare, gemm_rate, missing
from benchmarks.step.side import Part, check

GENERATION = ("decode", "rollout")


def measure(part: Part, rounds: int, device: torch.device) -> dict[str, Any]:
    """Compare results, then memory, then time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part.prepare(folder)
        ours, theirs = part.ours(folder, device), part.theirs(folder, device)
    print(f"  {check(ours, theirs, part)}", flush=True)
    found = compare(ours.step, theirs.step, rounds, device)
    if (flops := ours.flops()) is not None:
        best = gemm_rate(device, part.precision or torch.float32)
        print(
            f"  vlmkit: {flops / 1e9:.0f} GFLOP, {flops / min(found.seconds[0]) / best:.0%} of the best "
            f"matmul's {best / 1e9:.0f} GFLOP/s: at all of it the ratio would be "
            f"{min(found.seconds[1]) / (flops / best):.2f}"
        )
    return found.as_json()


def worst(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One entry for a case: the least speed and most memory of its parts."""
    slowest = min(parts.values(), key=lambda part: part["speed"])
    return {**slowest, "memory": max(part["memory"] for part in parts.values()), "parts": parts}


def run_case(case: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """All parts of a case that this machine can run."""
    if case in GENERATION:
        works = generation.cases(new_tokens=128, rollout_tokens=32)[case]
        made = generation.measure(generation.Contest(generation.SMALL, device), works, rounds)
        return worst(made) if len(works) > 1 else made.popitem()[1]
    found = {}
    for name, part in CASES[case].items():
        print(f"{case}, {name}: {part.describe()}", flush=True)
        if (why := missing(device, part.precision)) is not None:
            print(f"  LEFT OUT: {why}", flush=True)
            continue
        found[name] = measure(part, rounds, device)
        print(f"  {found[name]}", flush=True)
        gc.collect()
    return worst(found) if len(CASES[case]) > 1 else found.popitem()[1]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures beside goals, as Markdown."""
    lines = ["| case | speed | goal | spread | memory | goal |", "|---|---|---|---|---|---|"]
    for case, entry in results.items():
        for name, part in entry.get("parts", {"": entry}).items():
            goal = GOALS.get(f"{case}/{name}") or GOALS[case]
            low, high = part["spread"]
            memory = "" if goal.memory is None else f"at most {goal.memory:.2f}"
            lines.append(
                f"| {' '.join(filter(None, (case, name)))} | {part['speed']:.2f} | at least "
                f"{goal.speed:.2f} | {low:.2f}-{high:.2f} | {part['memory']:.2f} | {memory} |"
            )
    return "\n".join(lines)


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
        for case in (*CASES, *GENERATION)
        if options.case in (None, case)
    }
    print(table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
