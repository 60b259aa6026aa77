"""How time and memory of a step grow, beside transformers; and with ranks, as planned.

python -m benchmarks.growth
python -m benchmarks.growth --axis frames --rounds 3

Axes: tokens of a sample, images of a sample, frames of a video (the encoder alone), experts. Each point is
measured like a case of `benchmarks.train_step`: equality first, then memory, then time in turn. The axis
`ranks` is no measurement: `vlmkit.planning` plans a step of Qwen3-VL-8B with the same 1,024 rows on ever
more H100s. Writes `growth.json` and `growth.png`; a run of one axis keeps what the file says of
the others. The last line is the JSON object of what was run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its starts otherwise

import argparse
import gc
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.step.cases import DENSE, EXPERTS, SMALL_VOCABULARY
from benchmarks.step.measure import MIB, compare
from benchmarks.step.side import Part, check
from benchmarks.step.training import TrainingPart
from benchmarks.step.vision import VisionPart
from benchmarks.step.work import Sample
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vlmkit.build import build, compose_config
from vlmkit.checkpoint.parity_cases import Image, Video
from vlmkit.plan import planner_for

SHALLOW = ("size.num_layers=4", *SMALL_VOCABULARY)
SHALLOW_VISION = ("size.deepstack_blocks=[0,1,2]", "vision.depth=3")
BLUE, GREY = "#1f77b4", "#8c8c8c"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One quantity that grows, and the work at a value of it."""

    label: str
    values: Sequence[int]
    part: Callable[[int], Part]


def conversation(images: int) -> list[Sample]:
    """Two dialogues about so many pictures of 64 visual tokens, each with a few words."""
    turns = [part for _ in range(images) for part in (Image(8, 8), 24)]
    return [Sample([16, *turns], 64)] * 2


def mixture(experts: int) -> TrainingPart:
    """Text through `experts` experts, of which each token visits eight."""
    sizes = ("size.num_layers=4", f"size.num_experts={experts}", *SMALL_VOCABULARY)
    samples = [Sample([32], 64), Sample([96], 64), Sample([192], 64), Sample([300], 84)]
    return TrainingPart((*EXPERTS, *sizes), samples, tolerance=1e-3)


AXES: Mapping[str, Axis] = {
    "tokens": Axis(
        label="tokens of a sample (one sample, a quarter supervised)",
        values=(256, 512, 1024, 2048),
        part=lambda n: TrainingPart((*DENSE, *SHALLOW), [Sample([3 * n // 4], n // 4)]),
    ),
    "images": Axis(
        label="images of a sample (two samples, equally long)",
        values=(1, 2, 4, 8),
        part=lambda n: TrainingPart((*DENSE, *SHALLOW, *SHALLOW_VISION), conversation(n)),
    ),
    "frames": Axis(
        label="frames of a video (encoder alone, 256 patches a pair)",
        values=(8, 16, 32, 64),
        part=lambda n: VisionPart((*DENSE, *SHALLOW_VISION), [Video(n // 2, 8, 8)]),
    ),
    "experts": Axis(
        label="experts, eight of them active (four samples of text)",
        values=(16, 32, 64, 128),
        part=mixture,
    ),
}
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
ROWS_PER_STEP = 1024  # of 8,192 tokens

Points = list[dict[str, Any]]


def measured(axis: Axis, rounds: int, device: torch.device) -> Points:
    """Seconds and bytes of both at each value."""
    points: Points = []
    for value in axis.values:
        part = axis.part(value)
        print(f"{value} {axis.label}: {part.describe()}", flush=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            part.prepare(folder)
            ours, theirs = part.ours(folder, device), part.theirs(folder, device)
        print(f"  {check(ours, theirs, part)}", flush=True)
        found = compare(ours.step, theirs.step, rounds, device)
        points.append(
            {
                "value": value,
                "seconds": [round(median(spent), 4) for spent in found.seconds],
                "memory_mib": [round(added / MIB, 1) for added in found.added],
                **found.as_json(),
            }
        )
        del ours, theirs
        gc.collect()
    return points


def planned(ranks: Sequence[int]) -> Points:
    """A step of 8B by FSDP: seconds, and bytes of the fullest rank."""
    points: Points = []
    for count in ranks:
        config = compose_config(
            "model=qwen3vl_8b", "parallel=fsdp", f"parallel.shard={count}",
            "stage=s1_multimodal", "data_root=none", "planning.samples=0", "gpu=h100",
            "precision=bf16_mixed", "recompute=blocks",
            f"planner.rows_per_step={ROWS_PER_STEP}",
            config_name="plan",
        )  # fmt: skip
        plan = planner_for(config).plan(build(config.parallel))
        points.append(
            {
                "value": count,
                "seconds": round(plan.step_s, 4),
                "memory_mib": round(plan.memory.total / MIB, 1),
                "tokens_per_s": round(plan.tokens_per_s),
                "mfu": round(plan.mfu, 4),
            }
        )
        print(
            f"{count} ranks: {plan.step_s:.2f} s, {plan.memory.total / 2**30:.1f} GiB", flush=True
        )
    return points


def exponent(points: Points, key: str, which: int) -> float:
    """Slope between the last two points, both axes logarithmic."""
    (x0, y0), (x1, y1) = ((point["value"], point[key][which]) for point in points[-2:])
    return math.log(y1 / y0) / math.log(x1 / x0)


def draw(found: Mapping[str, Points], target: Path) -> None:
    """A column per axis: seconds above, memory below."""
    axes = [name for name in (*AXES, "ranks") if name in found]
    figure = Figure(figsize=(3.4 * len(axes), 6.2), layout="constrained")
    grid = figure.subplots(2, len(axes), squeeze=False)
    for column, name in enumerate(axes):
        points = found[name]
        values = [point["value"] for point in points]
        for row, key in enumerate(("seconds", "memory_mib")):
            panel = grid[row][column]
            if name == "ranks":
                numbers = [point[key] for point in points]
                if key == "memory_mib":
                    numbers = [number / 1024 for number in numbers]
                panel.plot(values, numbers, color=BLUE, marker="o", markersize=4)
                if row == 0:
                    panel.set_yscale("log", base=2)
                    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
                else:
                    panel.set_ylim(0, 1.2 * max(numbers))
                panel.set_xscale("log", base=2)
                panel.set_ylabel("seconds" if row == 0 else "GiB of a rank", fontsize=9)
                panel.set_title(
                    "step of 8B on H100s, planned" if row == 0 else "", loc="left", fontsize=10
                )
                panel.set_xlabel(f"ranks, FSDP, {ROWS_PER_STEP:,} rows a step", fontsize=8)
            else:
                for which, (who, colour) in enumerate((("vlmkit", BLUE), ("transformers", GREY))):
                    slope = exponent(points, key, which)
                    panel.plot(
                        values,
                        [point[key][which] for point in points],
                        color=colour, marker="o", markersize=4, label=f"{who}: n^{slope:.2f}",
                    )  # fmt: skip
                panel.set_xscale("log", base=2)
                panel.set_yscale("log", base=2)
                panel.set_ylabel(("CPU seconds" if row == 0 else "MiB added"), fontsize=9)
                panel.set_title(name if row == 0 else "", loc="left", fontsize=10)
                panel.set_xlabel(AXES[name].label.replace(" (", "\n("), fontsize=8)
                panel.legend(frameon=False, fontsize=8)
                panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
                panel.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
            panel.set_xticks(values, [str(value) for value in values], fontsize=8)
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=110)


def main() -> None:
    """Measure one axis or all, write, and draw all that is known."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", choices=(*AXES, "ranks"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = options.out / "growth.json"
    known: dict[str, Points] = json.loads(file.read_text()) if file.exists() else {}
    run: dict[str, Points] = {}
    for name in (*AXES, "ranks"):
        if options.axis not in (None, name):
            continue
        if name == "ranks":
            run[name] = planned(RANKS)
        else:
            run[name] = measured(AXES[name], options.rounds, torch.device(options.device))
        known |= run
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, indent=1) + "\n")
        draw(known, options.out / "growth.png")
    print(json.dumps(run))


if __name__ == "__main__":
    main()
