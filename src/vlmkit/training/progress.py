"""Progress on the terminal: loss, tokens per second, time left, and time spent waiting for data."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlmkit.batch import StepBatch


class TrainingProgress(ProgressBar):
    """A live bar on a terminal, a line every `line_every_s` seconds elsewhere.

    Also logs `train/tokens_per_s` and `train/data_wait`, the share of time in which training waited
    for its data. Above `data_wait_limit` it says so once.

    Args:
        line_every_s: seconds between lines where there is no terminal.
        data_wait_limit: share of time above which a warning is printed.
    """

    def __init__(self, line_every_s: float = 10.0, data_wait_limit: float = 0.05) -> None:
        super().__init__()
        self.line_every_s, self.data_wait_limit = line_every_s, data_wait_limit
        self._console = Console()
        self._bar: Progress | None = None
        self._enabled = True
        self._warned = False
        self._start = self._ready = self._last_line = 0.0
        self._tokens, self._waited = 0, 0.0
        self._smooth_loss: float | None = None

    def disable(self) -> None:
        """Print nothing (Lightning calls this on ranks other than 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the bar."""
        self._start = self._ready = self._last_line = time.perf_counter()
        self._tokens, self._waited, self._smooth_loss = 0, 0.0, None
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("train"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=trainer.max_steps, numbers="")
            self._bar.start()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step has its data."""
        self._waited += time.perf_counter() - self._ready

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Count, log, show."""
        self._ready = now = time.perf_counter()
        elapsed = now - self._start
        self._tokens += batch.num_tokens
        speed, wait = self._tokens / elapsed, self._waited / elapsed
        pl_module.log("train/tokens_per_s", speed)
        pl_module.log("train/data_wait", wait)
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            value = float(loss)
            smooth = self._smooth_loss
            self._smooth_loss = value if smooth is None else 0.95 * smooth + 0.05 * value
        step, total = trainer.global_step, trainer.max_steps
        numbers = (
            f"loss {self._smooth_loss or float('nan'):.3f}  {speed:,.0f} tok/s  wait {wait:.0%}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif self._enabled and now - self._last_line >= self.line_every_s:
            self._last_line = now
            left = elapsed / max(step, 1) * (total - step)
            print(f"step {step}/{total}  {numbers}  {_clock(left)} left", flush=True)
        if self._enabled and not self._warned and step >= 50 and wait > self.data_wait_limit:
            self._warned = True
            self._console.print(
                f"training waits for data {wait:.0%} of the time: raise data.num_workers"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is neither training nor waiting for data."""
        if trainer.state.fn == "fit":
            self._start += time.perf_counter() - self._ready
            self._ready = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the terminal usable."""
        self.on_train_end(trainer, pl_module)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
