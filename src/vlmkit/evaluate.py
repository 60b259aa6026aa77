"""Score a model on benchmarks, with everything that a score depends on beside it.

python -m vlmkit.evaluate run=<run folder> benchmark=quickstart
python -m vlmkit.evaluate checkpoint=<folder or hub id> benchmark=[mmstar,docvqa] benchmark_root=<folder>
torchrun --nproc-per-node=8 -m vlmkit.evaluate ...      # questions are shared out

An evaluation that was stopped goes on where it stood when the same command is given again.
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from vlmkit.build import build, entry_point
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import ConfigError
from vlmkit.evaluation.answerer import Answerer, ModelAnswerer, RecordedAnswers
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.checkpoint_hash import hash_of_published, hash_of_run
from vlmkit.evaluation.evaluator import Share, evaluate
from vlmkit.evaluation.report.page import save_report
from vlmkit.evaluation.result import BenchmarkResult
from vlmkit.evaluation.tables import print_whole, results_table


@entry_point("evaluate", free_text=("name",))
def main(config: DictConfig) -> None:
    """Evaluate, print, write."""
    if not config.benchmarks:
        raise ConfigError("no benchmark is named: benchmark=quickstart, or benchmark=[a,b]")
    with _ranks() as share:
        benchmarks = benchmarks_of(config)
        answerer = answerer_of(config, share)
        folder = out_folder(config)
        results = [
            _evaluated(benchmark, answerer, folder, config, share) for benchmark in benchmarks
        ]
        if share.rank == 0:
            print_whole(results_table(results))
            page = save_report([folder / result.spec.name for result in results], folder)
            print(f"results: {folder}\nreport: {page}")


def benchmarks_of(config: DictConfig) -> list[Benchmark]:
    """All that are named, with their data at hand.

    Raises:
        ConfigError: data are missing; names the benchmark and the file.
    """
    found = []
    for name, node in config.benchmarks.items():
        try:
            benchmark: Benchmark = build(node)
        except ConfigError as error:
            raise ConfigError(f"benchmark {name}: {error}") from error
        if config.max_new_tokens is not None:
            benchmark.decoding = replace(
                benchmark.decoding, max_new_tokens=int(config.max_new_tokens)
            )
        found.append(benchmark)
    return found


def answerer_of(config: DictConfig, share: Share) -> Answerer:
    """The model of a run or a checkpoint, or a file of answers.

    Raises:
        ConfigError: none or several are given.
        CheckpointError: the folder is not what it should be.
    """
    from vlmkit.pretrained import (
        checkpoint_folder,
        load_pretrained,
        load_processor,
        parse_dtype,
    )
    from vlmkit.runs import load_run

    given = [key for key in ("run", "checkpoint", "answers") if config[key] is not None]
    if len(given) != 1:
        raise ConfigError(
            f"give one of run=<run folder>, checkpoint=<folder or hub id> and answers=<file>; "
            f"given: {', '.join(given) or 'none'}"
        )
    if config.answers is not None:
        return RecordedAnswers(config.answers, config.name)
    cuda = f"cuda:{share.local_rank}" if torch.cuda.is_available() else "cpu"
    device, dtype = config.device or cuda, parse_dtype(config.dtype)
    sizes = {"batch_tokens": int(config.batch_tokens), "batch_rows": int(config.batch_rows)}
    if config.run is not None:
        run = load_run(config.run, device=device)
        model = run.model.to(dtype)
        return ModelAnswerer(
            model, run.processor, config.name or str(config.run), hash_of_run(run.folder), **sizes
        )
    folder = checkpoint_folder(config.checkpoint)
    model = load_pretrained(folder, dtype=dtype, device=device)
    return ModelAnswerer(
        model.eval(),
        load_processor(folder),
        config.name or str(config.checkpoint),
        hash_of_published(folder),
        **sizes,
    )


def out_folder(config: DictConfig) -> Path:
    """Where results go."""
    if config.out is not None:
        return Path(config.out)
    if config.run is not None:
        return RunFolder(config.run).path / "evaluations"
    local = config.checkpoint is not None and Path(str(config.checkpoint)).is_dir()
    return Path(config.checkpoint) / "evaluations" if local else Path("evaluations")


def _evaluated(
    benchmark: Benchmark, answerer: Answerer, folder: Path, config: DictConfig, share: Share
) -> BenchmarkResult:
    bar: FileProgress | None = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = FileProgress(benchmark.name, total)
        bar.advance(done - bar.done)

    try:
        return evaluate(
            benchmark,
            answerer,
            folder,
            config.limit,
            config.seed,
            share=share,
            fresh=config.fresh,
            progress=progress,
        )
    finally:
        if bar is not None:
            bar.__exit__()


@contextmanager
def _ranks() -> Iterator[Share]:
    """Joined where torchrun has started several; they meet only when their answers are written."""
    if not dist.is_torchelastic_launched():
        yield Share()
        return
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield Share(dist.get_rank(), dist.get_world_size(), dist.barrier)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
