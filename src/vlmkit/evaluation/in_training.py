"""Benchmarks while a model is being trained: questions are answered in words, as after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vlmkit.data.datamodule import VLMDataModule
from vlmkit.errors import ConfigError
from vlmkit.evaluation.answerer import ModelAnswerer
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.evaluator import Share, evaluate
from vlmkit.evaluation.result import BenchmarkResult
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.averaging import WeightAverage
from vlmkit.training.parallel.strategy import MeshStrategy
from vlmkit.training.self_checks.base import undisturbed
from vlmkit.training.stepped_module import SteppedModule


class EvaluateInTraining(Callback):
    """Evaluates every so many steps and at the end, with the processor object that training uses.

    Logs `eval/<benchmark>/<metric>`, and `eval/<benchmark>/unread`, the share of answers from which nothing
    could be read. Answers and items stand in `<folder>/step-<n>`. Training goes on as if nothing had
    happened: modes and random states are put back, and with `averaging=ema` the averages answer.

    Args:
        benchmarks: by name.
        folder: of results.
        every_n_steps: optimiser steps between evaluations.
        limit: questions of each benchmark, the same ones each time; None asks all.
        seed: of their choice.
        batch_tokens: see `ModelAnswerer`.
        batch_rows: see `ModelAnswerer`.

    Raises:
        ConfigError: there is nothing to evaluate, or never; when training starts: the model is divided over
            ranks, or it does not answer in words.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Benchmark],
        folder: str | Path,
        every_n_steps: int = 1000,
        limit: int | None = 100,
        seed: int = 0,
        batch_tokens: int = 16_384,
        batch_rows: int = 32,
    ) -> None:
        if not benchmarks:
            raise ConfigError(
                "callbacks.evaluation.benchmarks is empty: name one, or evaluation=none"
            )
        if every_n_steps < 1:
            raise ConfigError(
                f"callbacks.evaluation.every_n_steps is {every_n_steps}; it must be positive"
            )
        self.benchmarks, self.folder = dict(benchmarks), Path(folder)
        self.every_n_steps, self.limit, self.seed = every_n_steps, limit, seed
        self.batch_tokens, self.batch_rows = batch_tokens, batch_rows
        self._last_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what could not be evaluated, before the first step."""
        if isinstance(trainer.strategy, MeshStrategy):
            raise ConfigError(
                "callbacks.evaluation answers with the whole model, and this layout divides it over ranks: "
                "take parallel=single or parallel=ddp, or evaluation=none and python -m vlmkit.evaluate "
                "on the checkpoints"
            )
        if not isinstance(pl_module.model, Qwen3VL):
            raise ConfigError(
                f"callbacks.evaluation asks a model that answers in words; this one is a "
                f"{type(pl_module.model).__name__}: take evaluation=none"
            )
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Evaluate if it is time."""
        if trainer.global_step != self._last_step and not trainer.global_step % self.every_n_steps:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate what training has led to, unless that has just been done."""
        if trainer.global_step != self._last_step:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[BenchmarkResult]:
        """Evaluate now, and log; all ranks must call this."""
        assert isinstance(pl_module, SteppedModule)
        model = pl_module.model
        assert isinstance(model, Qwen3VL)
        step = self._last_step = trainer.global_step
        answerer = self.answerer(trainer, model, step)
        share = Share(trainer.global_rank, trainer.world_size, trainer.strategy.barrier)
        sections = pl_module.sections

        def progress(done: int, total: int) -> None:
            with sections("validation"):  # whoever watches sees that it goes on
                pass

        with ExitStack() as stack:
            stack.enter_context(sections("validation"))
            stack.enter_context(undisturbed(model))
            stack.enter_context(trainer.precision_plugin.forward_context())
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAverage) and callback.validate_with_average:
                    stack.enter_context(callback.applied(model))
            results = [
                evaluate(
                    benchmark,
                    answerer,
                    self.folder / f"step-{step}",
                    self.limit,
                    self.seed,
                    share=share,
                    fresh=True,
                    progress=progress,
                )
                for benchmark in self.benchmarks.values()
            ]
        numbers = logged(results)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)
        return results

    def answerer(self, trainer: L.Trainer, model: Qwen3VL, step: int) -> ModelAnswerer:
        """The model as it is, with the processor of the data module itself."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, VLMDataModule)
        return ModelAnswerer(
            model,
            data.processor,
            name=f"step {step}",
            checkpoint=f"step {step} of a run",
            batch_tokens=self.batch_tokens,
            batch_rows=self.batch_rows,
        )


def logged(results: list[BenchmarkResult]) -> dict[str, float]:
    """Numbers for a log, without those that are none."""
    numbers: dict[str, float] = {}
    for result in results:
        name = result.spec.benchmark
        values = {metric: score.value for metric, score in result.scores.items()}
        values["unread"] = result.score.parse_failures
        numbers |= {
            f"eval/{name}/{key}": value for key, value in values.items() if math.isfinite(value)
        }
    return numbers
