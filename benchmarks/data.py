"""How fast data are prepared: vlmkit beside transformers' processor with padding, on one machine in turn.

python -m benchmarks.data
python -m benchmarks.data --samples 300 --rounds 1 --out /tmp/results

Both prepare the same samples with the same pixel budgets and the same number of processes, one thread
each. The machine may be busy with other things: only ratios within a round mean something.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.baseline import padded_loader, published_processor
from benchmarks.photos import PhotoRows, write_data
from benchmarks.stages import stage_shares
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from vlmkit.batch import StepBatch
from vlmkit.build import build, compose_config
from vlmkit.data.datamodule import TicketSampler, TrainingSteps
from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.packing import pack_rows
from vlmkit.data.order.samples import Samples, table_key
from vlmkit.data.order.steps import FixedRows, FixedSamples, StepPlanner
from vlmkit.data.order.work import Limits, Sizes, TransformerWork
from vlmkit.data.processor import Processor
from vlmkit.data.rows import Rows
from vlmkit.data.sizes.measure import Measuring

FPS = 2.0
ROWS = Rows(row_tokens=8192)
BATCH = 8
OVERRIDES = (
    "model=qwen3vl_2b",
    "processor.image.min_pixels=65536",
    "processor.image.max_pixels=1048576",  # 1,024 visual tokens
    f"processor.video.fps={FPS}",
    "processor.video.max_frames=768",
    "processor.video.max_pixels=4194304",
)

LONG_NAMES = {
    "memory": "Getting memory for the patches of a batch, which the worker shares with its parent,",
    "patches": "Normalising pixels and cutting them into patches",
    "read files, decode": "Decoding",
}

Figures = dict[str, float]


def main() -> None:
    """Make the data set, measure in rounds, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder of the data set; kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        rows = folder / "rows.jsonl"
        if not rows.exists():
            write_data(folder, options.samples, seed=1)
        results = measure(PhotoRows(rows), options.workers, options.rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "data.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    (options.out / "data.md").write_text(text + "\n")
    show(results)


def measure(source: PhotoRows, workers: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    config = compose_config(*OVERRIDES)
    processor: Processor = build(config.processor)
    work: TransformerWork = build(config.work)
    part = Weighted(source=source)
    with Measuring({"photos": part}, processor, ROWS.limits, workers=0) as measuring:
        found = measuring.source("photos", np.arange(len(source)), show=False)
    table = found.table(table_key(part, processor, ROWS.limits))
    tabled = Weighted(source=source, sizes=table)

    padded = published_processor(processor)
    steps: dict[str, tuple[Weighted, StepPlanner]] = {
        "FixedRows": (tabled, FixedRows(4, work)),
        "FixedRows, no size table": (part, FixedRows(4, work)),
        "FixedSamples": (tabled, FixedSamples(32, work)),
    }
    ways: dict[str, Callable[[], Figures]] = {
        "transformers, padded": lambda: run_padded(
            padded_loader(source, padded, FPS, BATCH, workers)
        )
    }
    for name, (weighted, planner) in steps.items():
        ways[name] = lambda weighted=weighted, planner=planner: run_steps(  # type: ignore[misc]
            weighted, processor, planner, workers
        )
    figures: dict[str, list[Figures]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            figures[name].append(way())
            one = figures[name][-1]
            print(
                f"round {number + 1}, {name}: {one['samples_per_s']:.1f} samples/s, "
                f"{one['cpu_ms_per_sample']:.1f} ms of processor each",
                flush=True,
            )

    ours = Samples(Mixture({"photos": tabled}), processor, ROWS.limits)
    shares, speed = stage_shares(ours, FixedSamples(32, work), ROWS, num_steps=6)
    media_bytes = sum(path.stat().st_size for path in source.folder.glob("*/*.jpg"))
    return {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor(), "torch": torch.__version__},
        "data": {
            "samples": len(source),
            "media_mb": media_bytes / 1e6,
            "tokens_per_sample": float(found.samples.tokens.mean()),
            "patches_per_sample": float(found.samples.patches.mean()),
            "text_only_share": float((found.samples.images + found.samples.videos == 0).mean()),
        },
        "workers": workers,
        "rounds": rounds,
        "ways": {
            name: summary(each, figures["transformers, padded"], media_bytes / len(source))
            for name, each in figures.items()
        },
        "packer_samples_per_s": packer_speed(work),
        "measured_per_s": measuring_speed(processor),
        "stages": shares,
        "stage_samples_per_s": speed,
    }  # fmt: skip


def summary(
    rounds: list[Figures], baseline: list[Figures], bytes_per_sample: float
) -> dict[str, float]:
    """Medians over rounds, and of the ratios within each round."""

    def median(key: str) -> float:
        return statistics.median(one[key] for one in rounds)

    pairs = list(zip(rounds, baseline, strict=True))
    ratios = [ours["samples_per_s"] / theirs["samples_per_s"] for ours, theirs in pairs]
    cpu = [theirs["cpu_ms_per_sample"] / ours["cpu_ms_per_sample"] for ours, theirs in pairs]
    return {
        "samples_per_s": median("samples_per_s"),
        "mb_per_s": median("samples_per_s") * bytes_per_sample / 1e6,
        "cpu_ms_per_sample": median("cpu_ms_per_sample"),
        "fill": median("fill"),
        "ratio": statistics.median(ratios),
        "smallest_ratio": min(ratios),
        "cpu_ratio": statistics.median(cpu),
        "smallest_cpu_ratio": min(cpu),
    }


class Watch:
    """Time on the clock, and on processors: this process and the loader's."""

    def __init__(self) -> None:
        self.start, self.start_cpu = time.perf_counter(), self._cpu()

    def figures(self, samples: int, tokens: int, slots: int) -> Figures:
        """To be asked for when the loader has ended its processes."""
        seconds, cpu = time.perf_counter() - self.start, self._cpu() - self.start_cpu
        return {
            "samples_per_s": samples / seconds,
            "cpu_ms_per_sample": 1000 * cpu / samples,
            "fill": tokens / slots,
        }

    @staticmethod
    def _cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)


def run_padded(loader: DataLoader[Any]) -> Figures:
    """One pass over the data."""
    watch = Watch()
    samples = tokens = slots = 0
    for batch in loader:
        samples += len(batch["input_ids"])
        slots += batch["input_ids"].numel()
        tokens += int(batch["attention_mask"].sum())
    return watch.figures(samples, tokens, slots)


def run_steps(part: Weighted, processor: Processor, planner: StepPlanner, workers: int) -> Figures:
    """As many steps as one pass over the data takes."""
    samples = Samples(Mixture({"photos": part}), processor, ROWS.limits)
    num_steps = steps_of_a_pass(samples, planner)
    watch = Watch()
    sampler = TicketSampler(samples, planner, planner.start(), num_steps)
    loader: DataLoader[StepBatch] = DataLoader(
        TrainingSteps(samples, planner, ROWS),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    done = tokens = slots = 0
    for batch in loader:
        done += sum(batch.samples.values())
        tokens += batch.num_tokens
        slots += sum(micro.input_ids.numel() for micro in batch.micro_batches)
    return watch.figures(done, tokens, slots)


def steps_of_a_pass(samples: Samples, planner: StepPlanner) -> int:
    """Steps until as many samples came up as there are."""
    left = len(samples.mixture.parts["photos"].source)
    for ticket in planner.tickets(samples, planner.start()):
        left -= sum(map(len, planner.rows(samples, ticket).rows))
        if left <= 0:
            return ticket.step + 1
    raise AssertionError("tickets end")


def measuring_speed(processor: Processor, count: int = 1000) -> dict[str, float]:
    """Samples per second of one process that measures, by kind of data."""
    kinds = {"text only": (0, 0, 0, 1, 0), "a photo and a caption": (1, 0, 0, 0, 0)}
    speeds: dict[str, float] = {}
    for name, shares in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            file = write_data(Path(folder), count, seed=2, kinds=shares, longest_side=500)
            parts = {name: Weighted(source=PhotoRows(file))}
            with Measuring(parts, processor, ROWS.limits, workers=0) as measuring:
                measuring.source(name, np.arange(count // 4), show=False)
                start = time.process_time()
                measuring.source(name, np.arange(count), show=False)
                speeds[name] = count / (time.process_time() - start)
    return speeds


def packer_speed(work: TransformerWork, count: int = 200_000) -> float:
    """Samples per second that are placed into rows of 8,192 tokens, 64 rows at a time, on one core."""
    rng = np.random.default_rng(0)
    tokens = np.clip(rng.lognormal(6, 1, count), 16, 8192).astype(np.int64)
    patches = np.where(rng.random(count) < 0.7, tokens * 2 // 4 * 4, 0)
    sizes = Sizes(tokens=tokens, scored=tokens // 3, patches=patches, patch_pairs=patches**2)
    pool, at, placed = sizes[:0], 0, 0
    start = time.process_time()
    while at < count:
        while pool.tokens.sum() < 1.5 * 64 * 8192 and at < count:
            pool, at = pool + sizes[at : at + 256], at + 256
        packed = pack_rows(pool, Limits(8192), work, 64)
        placed += sum(map(len, packed.rows))
        pool = pool[np.array(packed.left, dtype=np.int64)]
    return placed / (time.process_time() - start)


def sentences(results: dict[str, Any]) -> Iterator[str]:
    """What the figures say."""
    stages = results["stages"]
    name = max(stages, key=stages.get)
    yield f"{LONG_NAMES.get(name, name)} takes most of the time of a worker: {stages[name]:.0%}."
    yield f"The packer places {results['packer_samples_per_s']:,.0f} samples per second on one core."
    speeds = results["measured_per_s"].items()
    yield "Measuring, samples per second of a process: " + ", ".join(
        f"{speed:,.0f} ({kind})" for kind, speed in speeds
    )


def report(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    data = results["data"]
    lines = [
        "# Preparing data",
        "",
        f"{data['samples']} samples, {data['media_mb']:.0f} MB of photos, "
        f"{data['tokens_per_sample']:.0f} tokens and {data['patches_per_sample']:.0f} patches each; "
        f"{results['workers']} processes of one thread; medians of {results['rounds']} rounds in turn. "
        "Made by `python -m benchmarks.data`.",
        "",
        "| way | samples/s | MB/s | slots filled | ratio (smallest) | CPU ms/sample | ratio (smallest) |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in rows_of(results)),
        "",
        "| stage of a worker | share |",
        "|---|---|",
        *(f"| {name} | {share:.1%} |" for name, share in results["stages"].items()),
        "",
        *sentences(results),
    ]
    return "\n".join(lines)


def rows_of(results: dict[str, Any]) -> Iterator[list[str]]:
    """Cells of the main table."""
    for name, way in results["ways"].items():
        yield [
            name,
            f"{way['samples_per_s']:.1f}",
            f"{way['mb_per_s']:.1f}",
            f"{way['fill']:.1%}",
            f"{way['ratio']:.2f} ({way['smallest_ratio']:.2f})",
            f"{way['cpu_ms_per_sample']:.1f}",
            f"{way['cpu_ratio']:.2f} ({way['smallest_cpu_ratio']:.2f})",
        ]


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    table = Table(
        "way", "samples/s", "MB/s", "filled", "ratio", "processor ms", "ratio", box=None
    )  # fmt: skip
    for cells in rows_of(results):
        table.add_row(*cells)
    console.print(table)
    stages = Table("stage of a worker", "share", box=None)
    for name, share in results["stages"].items():
        stages.add_row(name, f"{share:.1%}")
    console.print(stages)
    for sentence in sentences(results):
        print(sentence)


if __name__ == "__main__":
    main()
