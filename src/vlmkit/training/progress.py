"""Progress on the terminal: loss, tokens per second, time left, and time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

SHOWN = {
    "train/tokens_per_s": "{:,.0f} tok/s",
    "train/data_wait": "wait {:.0%}",
}  # what comes after the loss, where it is logged


class TrainingProgress(ProgressBar):
    """A live bar on a terminal, a line every `line_every_s` seconds elsewhere.

    Measures nothing: what it shows is what was logged last, `train/loss` and the numbers of
    `vlmkit.training.meters.step_meter.StepMeter`. Where training waits for its data for more than
    `data_wait_limit` of its time, it says so once.

    Args:
        line_every_s: seconds between lines where there is no terminal.
        bar_every_s: seconds between changes of the bar; reading the loss makes a GPU's host wait.
        data_wait_limit: share of time above which a warning is printed.
    """

    def __init__(
        self,
        line_every_s: float = 10.0,
        bar_every_s: float = 0.5,
        data_wait_limit: float = 0.05,
    ) -> None:
        super().__init__()
        self.line_every_s, self.bar_every_s = line_every_s, bar_every_s
        self.data_wait_limit = data_wait_limit
        self._console = Console()
        self._bar: Progress | None = None
        self._enabled = True
        self._warned = False
        self._start = self._last_shown = self._validation_start = 0.0
        self._first_step = 0
        self._smooth_loss: Tensor | None = None

    def disable(self) -> None:
        """Print nothing (Lightning calls this on ranks other than 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the bar."""
        self._start = self._last_shown = time.perf_counter()
        self._first_step, self._smooth_loss = trainer.global_step, None
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

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Smooth the loss; show what is known, now and then."""
        metrics: Mapping[str, Tensor] = trainer.callback_metrics
        if (loss := metrics.get("train/loss")) is not None:
            smooth = self._smooth_loss
            self._smooth_loss = loss.clone() if smooth is None else smooth.lerp(loss, 0.05)
        now, step, total = time.perf_counter(), trainer.global_step, trainer.max_steps
        every_s = self.line_every_s if self._bar is None else self.bar_every_s
        if not self._enabled or (now - self._last_shown < every_s and step < total):
            return
        self._last_shown = now
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=self._numbers(metrics))
        elif now - self._start >= self.line_every_s:
            left = (now - self._start) / max(step - self._first_step, 1) * (total - step)
            print(f"step {step}/{total}  {self._numbers(metrics)}  {_clock(left)} left", flush=True)
        wait = float(metrics.get("train/data_wait", 0.0))
        if not self._warned and step - self._first_step >= 50 and wait > self.data_wait_limit:
            self._warned = True
            self._console.print(
                f"training waits for data {wait:.0%} of the time: raise data.num_workers"
            )

    def _numbers(self, metrics: Mapping[str, Tensor]) -> str:
        loss = float("nan") if self._smooth_loss is None else float(self._smooth_loss)
        shown = [f"loss {loss:.3f}"]
        for key, words in SHOWN.items():
            if key in metrics:
                shown.append(words.format(float(metrics[key])))
        return "  ".join(shown)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no training: time left does not count it."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clock of training goes on."""
        if trainer.state.fn == "fit":
            self._start += time.perf_counter() - self._validation_start

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
