"""Where the time of a step goes, operator by operator: torch's profiler over a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from vlmkit.training.stepped_module import SteppedModule

PREFIX = "section: "
"""Of the sections' names among the operators of a trace."""


class OperatorTrace(Callback):
    """Records some steps, writes `trace-rank<n>.json`, and prints the costliest operators.

    The trace opens in ui.perfetto.dev and chrome://tracing; sections (data, forward, backward, ...) stand
    above the operators they called. Not Lightning's PyTorchProfiler, which fails when validation comes
    before and after training.

    Args:
        folder: where the trace goes.
        skip_steps: first steps of the process that are not recorded, at least 2: in the first, kernels
            are chosen and `WhatRan` has the profiler; in the last, the profiler warms up.
        num_steps: steps that are recorded.
        num_rows: operators that are printed.
    """

    def __init__(
        self, folder: str | Path, skip_steps: int = 4, num_steps: int = 3, num_rows: int = 15
    ) -> None:
        super().__init__()
        if skip_steps < 2 or num_steps < 1:
            raise ValueError(
                f"skip_steps is {skip_steps} and num_steps {num_steps}; they must be at least 2 and 1"
            )
        self.folder = Path(folder)
        self.skip_steps, self.num_steps, self.num_rows = skip_steps, num_steps, num_rows
        self._profile: profile | None = None
        self._rank = 0
        self._on_gpu = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count steps."""
        assert isinstance(pl_module, SteppedModule)
        self._rank = trainer.global_rank
        self._on_gpu = trainer.strategy.root_device.type == "cuda"
        pl_module.sections.attach(_SectionNames())
        self._profile = profile(
            activities=[ProfilerActivity.CPU] + self._on_gpu * [ProfilerActivity.CUDA],
            schedule=schedule(wait=self.skip_steps - 1, warmup=1, active=self.num_steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is done; the last one that is recorded writes the trace."""
        if self._profile is not None:
            self._profile.step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop recording, if the run was shorter than that."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop recording."""
        self.on_train_end(trainer, pl_module)

    def _write(self, recorded: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"trace-rank{self._rank}.json"
        recorded.export_chrome_trace(str(path))
        if self._rank == 0:
            Console().print(self._table(recorded))
            print(f"for ui.perfetto.dev or chrome://tracing: {path}")

    def _table(self, recorded: profile) -> Table:
        attribute = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        times_us = {
            event: float(getattr(event, attribute))
            for event in recorded.key_averages()
            if not event.key.startswith((PREFIX, "ProfilerStep"))
        }
        total = sum(times_us.values()) or 1.0
        where = "the GPU" if self._on_gpu else "the CPU"
        table = Table("operator", "calls", "ms", "share", box=None, title_justify="left")
        table.title = f"own time of operators on {where}, {self.num_steps} steps"
        for event in sorted(times_us, key=times_us.__getitem__, reverse=True)[: self.num_rows]:
            own = times_us[event]
            table.add_row(event.key, str(event.count), f"{own / 1e3:.2f}", f"{own / total:.1%}")
        return table


class _SectionNames:
    """Writes sections into the trace."""

    def __init__(self) -> None:
        self._open: list[record_function] = []

    def enter(self, name: str) -> None:
        """See `SectionObserver.enter`."""
        marker = record_function(PREFIX + name)
        marker.__enter__()
        self._open.append(marker)

    def leave(self, name: str, seconds: float) -> None:
        """See `SectionObserver.leave`."""
        if self._open:  # the section may have begun before this was attached
            self._open.pop().__exit__(None, None, None)
