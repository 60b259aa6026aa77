"""Measures the samples of sources from headers: in several processes, and so that a kill loses little.

What is measured is what training does until pixels are decoded: the same code makes the same plan, so
that sizes in a table are those of the loaded samples.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from vlmkit.data.order.mixture import Weighted
from vlmkit.data.order.samples import made_to_fit, table_key
from vlmkit.data.order.work import Ints, Limits
from vlmkit.data.processor import Plan, Processor
from vlmkit.data.sizes.measured import (
    Measured,
    MediaColumns,
    SampleColumns,
    left_out_row,
    media_rows,
    sample_row,
)
from vlmkit.data.sizes.size_table import REASONS
from vlmkit.data.sources.files import short_hash
from vlmkit.errors import ConfigError, DataError, Reason, UserError

logger = logging.getLogger(__name__)

_CHUNK = 128
"""Samples that a process measures at a time: a twentieth of a second for pictures."""

_LARGEST_SHARD = 8192
"""Samples that are written at a time: what a kill may lose."""

_WORTH_PROCESSES = 4096
"""Samples below which starting processes takes longer than measuring."""

_MEDIA_CODES = [
    REASONS.index(reason) + 1
    for reason in Reason
    if reason
    not in (Reason.BAD_RECORD, Reason.BAD_GEOMETRY, Reason.NOTHING_SCORED, Reason.TOO_LONG)
]
"""Codes of what lies outside of the records, and may be mended without a trace in them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What measuring needs to know; sent to each process once."""

    parts: Mapping[str, Weighted]
    processor: Processor
    limits: Limits

    def measure(self, name: str, positions: Ints) -> Measured:
        """Measure some samples of a source, one after the other."""
        samples: list[tuple[int, ...]] = []
        media: list[tuple[float, ...]] = []
        for position in positions.tolist():
            try:
                row, media_of_row = self._row(self.parts[name], position)
            except Exception as error:
                error.add_note(f"while measuring sample {position} of {name}")
                raise
            samples.append(row)
            media += media_of_row
        return Measured(samples=SampleColumns.of_rows(samples), media=MediaColumns.of_rows(media))

    def _row(
        self, part: Weighted, position: int
    ) -> tuple[tuple[int, ...], list[tuple[float, ...]]]:
        whole: Plan | None = None
        try:
            whole = self.processor.plan(part.source[position])
            plan, remedy = made_to_fit(whole, self.processor, self.limits, part.over_length)
            return sample_row(position, plan, whole, remedy), media_rows(position, plan)
        except DataError as error:
            return left_out_row(position, error.code, whole), []


class Measuring:
    """Measures sources; a context that ends the processes it started.

    Finished shards are kept in a folder, and found there when the same is measured again.

    Args:
        parts: sources with what may be done to samples that do not fit.
        processor: lays samples out.
        limits: of a row.
        workers: processes; 0 measures in this one, None takes one per core where that pays.
        folder: of shards; None keeps nothing.
    """

    def __init__(
        self,
        parts: Mapping[str, Weighted],
        processor: Processor,
        limits: Limits,
        workers: int | None = None,
        folder: Path | None = None,
    ) -> None:
        bare = {name: replace(part, sizes=None) for name, part in parts.items()}
        self.job = Job(parts=bare, processor=processor, limits=limits)
        self.workers, self.folder = workers, folder
        self._pool: ProcessPoolExecutor | None = None

    def source(self, name: str, positions: Ints, show: bool = True) -> Measured:
        """Measure samples of a source.

        Args:
            name: of the source among the parts.
            positions: of the samples in the source, increasing.
            show: progress, once it takes seconds.

        Raises:
            ConfigError: the source cannot be sent to other processes.
            UserError: a process died.
        """
        size = _shard_size(len(positions))
        shards = [positions[first : first + size] for first in range(0, len(positions), size)]
        folder = self._folder_of(name, positions)
        files = [folder / f"{i:06d}.npz" if folder else None for i in range(len(shards))]
        found = {i: kept for i, file in enumerate(files) if (kept := _kept(file)) is not None}
        missing = [i for i in range(len(shards)) if i not in found]
        with MeasureProgress(name, len(positions), silent=not show) as progress:
            for i, kept in found.items():
                found[i] = self._retried(name, kept)
                progress.found(len(kept))
            for i, measured in self._shards(name, {i: shards[i] for i in missing}, progress):
                file = files[i]
                if file is not None:
                    measured.save(file)
                found[i] = measured
        return Measured.joined([found[i] for i in range(len(shards))])

    def _retried(self, name: str, kept: Measured) -> Measured:
        """An earlier shard, in which samples whose files could not be read get another chance."""
        failed = np.isin(kept.samples.code, _MEDIA_CODES)
        if not failed.any():
            return kept
        again = self.job.measure(name, kept.samples.position[failed])
        return kept.replaced(again)

    def _folder_of(self, name: str, positions: Ints) -> Path | None:
        """Where shards of a source are kept, if it can be told whether they still hold."""
        part = self.job.parts[name]
        if self.folder is None or getattr(part.source, "fingerprint", None) is None:
            return None
        key = table_key(part, self.job.processor, self.job.limits)
        return self.folder / f"{name}-{short_hash(key, len(positions), _LARGEST_SHARD)}"

    def _shards(
        self, name: str, shards: Mapping[int, Ints], progress: MeasureProgress
    ) -> Iterator[tuple[int, Measured]]:
        """Measure shards chunk by chunk, and yield each when it is complete."""
        total = sum(len(positions) for positions in shards.values())
        workers = self._workers_for(total)
        chunks = (
            (i, first, positions[first : first + _CHUNK])
            for i, positions in shards.items()
            for first in range(0, len(positions), _CHUNK)
        )
        done: dict[int, dict[int, Measured]] = {i: {} for i in shards}
        for i, first, measured in self._chunks(name, chunks, workers):
            parts = done[i]
            parts[first] = measured
            progress.advance(len(measured))
            if sum(len(part) for part in parts.values()) == len(shards[i]):
                yield i, Measured.joined([parts[first] for first in sorted(parts)])
                del done[i]

    def _workers_for(self, total: int) -> int:
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cores or 1 if total >= _WORTH_PROCESSES and (cores or 1) > 1 else 0

    def _chunks(
        self, name: str, chunks: Iterator[tuple[int, int, Ints]], workers: int
    ) -> Iterator[tuple[int, int, Measured]]:
        if not workers:
            for i, first, positions in chunks:
                yield i, first, self.job.measure(name, positions)
            return
        pool = self._started(workers)
        waiting: dict[Future[Measured], tuple[int, int, Ints]] = {}
        try:
            while True:
                for i, first, positions in chunks:
                    waiting[pool.submit(_measure_here, name, positions)] = (i, first, positions)
                    if len(waiting) >= 3 * workers:
                        break
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    i, first, _ = waiting[future]
                    measured = future.result()
                    del waiting[future]
                    yield i, first, measured
        except BrokenProcessPool as error:
            places = [positions[[0, -1]].tolist() for _, _, positions in waiting.values()]
            raise UserError(
                f"{name}: a process died while it measured samples {min(a for a, _ in places)} to "
                f"{max(b for _, b in places)}: it ran out of memory, or a decoder crashed. What is "
                "measured is kept; the same command goes on from there"
            ) from error

    def _started(self, workers: int) -> ProcessPoolExecutor:
        if self._pool is None:
            try:
                job = pickle.dumps(self.job)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"a source cannot be sent to other processes ({error}): say workers=0"
                ) from error
            self._pool = ProcessPoolExecutor(workers, _context(), _begin, (job,))
        return self._pool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            self._pool = None


def _context() -> Any:
    """How processes start. A fork of this one would copy the locks of its threads, held or not.

    A server without threads is forked instead, which has imported what is imported here.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in sys.modules if name.startswith("vlmkit.")])
    return context


def evenly_spaced(total: int, limit: int | None) -> Ints:
    """Positions of at most `limit` samples, spread over all of them."""
    if limit is None or limit >= total:
        return np.arange(total, dtype=np.int64)
    return np.arange(limit, dtype=np.int64) * total // limit


class MeasureProgress:
    """Shows samples per second and time left, once it has taken two seconds.

    Args:
        what: is measured.
        total: samples.
        silent: show nothing.
        line_every_s: seconds between lines where there is no terminal.
    """

    def __init__(
        self, what: str, total: int, silent: bool = False, line_every_s: float = 10.0
    ) -> None:
        self.what, self.total, self.silent, self.line_every_s = what, total, silent, line_every_s
        self.done = 0
        self._next = time.monotonic() + 2.0
        self._began: tuple[float, int] | None = None  # time and samples, once the first are there
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def found(self, count: int) -> None:
        """Count samples that an earlier run has measured."""
        self.done += count

    def advance(self, count: int) -> None:
        """Count samples as measured."""
        self.done += count
        now = time.monotonic()
        if self._began is None:
            self._began = (now, self.done)  # processes have started: that is not part of the rate
        if self.silent or now < max(self._next, self._began[0] + 1.0):
            return
        rate = (self.done - self._began[1]) / (now - self._began[0])
        left = (self.total - self.done) / rate
        numbers = f"{self.done:,} of {self.total:,}, {rate:,.0f}/s, {_clock(left)} left"
        if not self._console.is_terminal:
            self._next = now + self.line_every_s
            print(f"measuring {self.what}: {numbers}", flush=True)
            return
        self._next = now + 0.2
        if self._bar is None:
            columns = (
                TextColumn("measuring {task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[numbers]}"),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self.what, total=self.total, numbers="")
            self._bar.start()
        self._bar.update(self._task, completed=self.done, numbers=numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _shard_size(total: int) -> int:
    """Enough shards to lose little, and no more than a folder takes; depends on nothing else."""
    return int(np.clip(total // 64, _CHUNK, _LARGEST_SHARD))


def _kept(file: Path | None) -> Measured | None:
    """A shard that an earlier run has left."""
    if file is None:
        return None
    try:
        return Measured.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.info("measured anew: %s", error)
        return None


_job: Job | None = None
"""Of a process that was started to measure."""


def _begin(job: bytes) -> None:
    """Set up such a process: one thread, quiet on Ctrl-C, and gone when the one that started it is."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _job = pickle.loads(job)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure_here(name: str, positions: Ints) -> Measured:
    assert _job is not None
    return _job.measure(name, positions)
