"""Runs the checks before the first step, after it, every few steps, and at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

from vlmkit.data.datamodule import VLMDataModule
from vlmkit.training.parallel.sharding import reshard
from vlmkit.training.rank_groups import RankGroups
from vlmkit.training.self_checks.base import (
    CheckContext,
    CheckResult,
    SelfCheck,
    SelfCheckError,
    Status,
    one_row,
    undisturbed,
)
from vlmkit.training.self_checks.samples import Choose, ShortestFirst

log = logging.getLogger(__name__)

OnFailure = Callable[[str], None]
"""Gets the message of checks that failed; `stop`, `warn`, or a function of yours."""


def stop(message: str) -> None:
    """End the run.

    Raises:
        SelfCheckError: with the message.
    """
    raise SelfCheckError(message)


def warn(message: str) -> None:
    """Log the message and go on."""
    log.warning(message)


class SelfChecks(Callback):
    """Measures what would corrupt a run without any error.

    A table before step 0 names what was measured, its tolerance and its price. Each run of the checks
    logs `checks/<name>`, what was measured, and `checks/share`, the part of the training time that all
    checks together take. They leave no trace in weights, gradients, random states, metrics or order of
    samples. All ranks run them, on the same samples, and stop together.

    Args:
        checks: by the names under which they are printed and logged.
        every_n_steps: optimiser steps between runs; there is another after the first step and one at the
            end.
        on_failure: what happens when a check fails.
        choose: which samples they look at.
    """

    def __init__(
        self,
        checks: Mapping[str, SelfCheck],
        every_n_steps: int = 500,
        on_failure: OnFailure = stop,
        choose: Choose | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be positive")
        self.checks, self.every_n_steps, self.on_failure = dict(checks), every_n_steps, on_failure
        self.choose = choose or ShortestFirst()
        self._context: CheckContext | None = None
        self._start_step = self._last_run = 0
        self._begun = self._spent = 0.0
        self._noticed: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose samples, run all checks, and print the table."""
        begun = time.perf_counter()
        self._context = context_of(trainer, pl_module, self.choose)
        preparing = time.perf_counter() - begun
        self._start_step = trainer.global_step
        results, seconds = self._run(trainer, is_last=False)
        if trainer.is_global_zero:
            self._print(results, seconds, preparing)
        self._begun, self._spent = time.perf_counter(), 0.0
        self._judge(trainer, results)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Run them if it is their turn."""
        step = trainer.global_step
        if step != self._last_run and (
            step == self._start_step + 1 or not step % self.every_n_steps
        ):
            self._again(trainer, is_last=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run them for the last time."""
        self._again(trainer, is_last=True)

    def _again(self, trainer: L.Trainer, is_last: bool) -> None:
        results, seconds = self._run(trainer, is_last)
        self._spent += sum(seconds.values())
        share = self._spent / max(time.perf_counter() - self._begun, 1e-9)
        for logger in trainer.loggers:
            logger.log_metrics({"checks/share": share}, step=trainer.global_step)
        self._judge(trainer, results)

    def _run(
        self, trainer: L.Trainer, is_last: bool
    ) -> tuple[dict[str, CheckResult], dict[str, float]]:
        """Results and seconds of all checks; measured numbers go to the loggers."""
        assert self._context is not None
        self._last_run = trainer.global_step
        context = self._context.at(trainer.global_step, is_last)
        results, seconds = {}, {}
        with undisturbed(context.model):
            for name, check in self.checks.items():
                begun = time.perf_counter()
                results[name] = check.run(context)
                reshard(context.model)  # the next check finds weights as they are between steps
                seconds[name] = time.perf_counter() - begun
        measured = {
            f"checks/{name}": result.measured
            for name, result in results.items()
            if result.measured is not None
        }
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=trainer.global_step)
        return results, seconds

    def _judge(self, trainer: L.Trainer, results: Mapping[str, CheckResult]) -> None:
        """Say what has not been said before, and act on failures."""
        for name, result in results.items():
            if result.status is Status.NOTICE and self._noticed.get(name) != result.detail:
                self._noticed[name] = result.detail
                log.warning(
                    "self-check %s, step %d: %s. Usually: %s",
                    name, trainer.global_step, result.detail, self.checks[name].meaning,
                )  # fmt: skip
        failed = {name: result for name, result in results.items() if not result.passed}
        if trainer.strategy.reduce_boolean_decision(not failed, all=True):
            return
        lines = [
            f"self-check {name} failed at step {trainer.global_step}: measured {_number(result.measured)}, "
            f"tolerance {_number(result.tolerance)} ({result.detail}). Usually: {self.checks[name].meaning}."
            for name, result in failed.items()
        ]
        self.on_failure("\n".join(lines) or "a self-check failed on another rank; see its message")

    def _print(
        self, results: Mapping[str, CheckResult], seconds: Mapping[str, float], preparing: float
    ) -> None:
        table = Table(
            "self-check", "", "measured", "tolerance", "time", "of", box=None, header_style="bold"
        )
        for name, result in results.items():
            numbers = (
                _number(result.measured),
                _number(result.tolerance),
                f"{seconds[name]:.2f} s",
            )
            table.add_row(name, str(result.status), *numbers, result.detail)
        Console().print(table)
        print(
            f"self-checks took {sum(seconds.values()):.2f} s and {preparing:.2f} s to read their samples; "
            f"they run again after the first step and every {self.every_n_steps} steps"
        )


def context_of(trainer: L.Trainer, module: L.LightningModule, choose: Choose) -> CheckContext:
    """The run of a trainer, as checks see it.

    Raises:
        SelfCheckError: none of the run's first samples is short enough.
    """
    data: VLMDataModule = trainer.datamodule  # type: ignore[attr-defined]
    examples = choose(data.samples)
    if not examples:
        raise SelfCheckError(
            "self-checks found no sample among the first of the run that fits their budget: raise "
            "max_tokens and max_patches of self_checks.choose, or leave self_checks out"
        )
    return CheckContext(
        model=module.model,  # type: ignore[arg-type]
        loss=module.loss,  # type: ignore[arg-type]
        processor=data.processor,
        examples=examples,
        packed=one_row(list(examples), data.processor),
        device=module.device,
        precision=trainer.precision_plugin.forward_context,
        shares_samples=RankGroups.of(trainer).share_samples,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
