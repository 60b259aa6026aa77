"""`what_ran.json`: what a run was made of and what it really called."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from vlmkit.batch import StepBatch, VLMBatch
from vlmkit.training.meters.calls import (
    CallCounter,
    KernelCounter,
    check_asked_for,
    held,
)
from vlmkit.training.meters.environment import environment, git_state

MOST_WARNINGS = 100


class WhatRan(Callback):
    """Writes a manifest of the run: at its start, after the first step, and at its end.

    The first step of the process is watched: classes of attention back ends and losses that were called,
    torch's kernels by name. A part that was configured and never called ends the run.
    """

    def __init__(
        self,
        path: str | Path,
        asked_for: Mapping[str, Collection[str]] | None = None,
        layout: Mapping[str, int] | None = None,
        watch_kernels: bool = True,
    ) -> None:
        """Keep the settings.

        Args:
            path: of the manifest; changes of the working tree go beside it, with the ending `.patch`.
            asked_for: further switches, each with the classes or kernels of which it promises one.
            layout: sizes of the parallel axes.
            watch_kernels: whether torch's profiler looks at the first step.
        """
        super().__init__()
        self.path = Path(path)
        self.asked_for, self.layout = dict(asked_for or {}), dict(layout or {})
        self.watch_kernels = watch_kernels
        self.facts: dict[str, Any] = {}
        self._watching, self._kernels_watch = ExitStack(), ExitStack()
        self._calls = CallCounter((), ())
        self._kernels = KernelCounter()
        self._warnings = Warnings()
        self._first_step = True
        self._compiled_before = Counter[str]()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is known before anything has run."""
        logging.getLogger("vlmkit").addHandler(self._warnings)
        self._first_step = True
        self._compiled_before = compile_facts()
        devices = [_device_name(trainer.strategy.root_device)]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, devices[0])
            devices = gathered
        if not trainer.is_global_zero:
            return
        code, patch = git_state()
        if patch:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.with_suffix(".patch").write_bytes(patch)
        self.facts = {
            "status": "started",
            "started": _now(),
            "code": code,
            "data": {"fingerprint": getattr(_datamodule(trainer), "fingerprint", None)},
            "ranks": {
                "world_size": trainer.world_size,
                "strategy": type(trainer.strategy).__name__,
                "layout": self.layout,
                "devices": devices,
            },
            **environment(),
        }
        self.write()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch the first step."""
        if not self._first_step:
            return
        parts = {**held(pl_module, "attention"), **held(pl_module, "kernel")}
        classes = [cls for choices in parts.values() for cls in choices]
        counter = CallCounter(_modules_of_loss(pl_module), classes)
        self._calls = self._watching.enter_context(counter)
        if self.watch_kernels:
            self._kernels = self._kernels_watch.enter_context(KernelCounter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Write what the first step has called.

        Raises:
            ConfigError: something was asked for and never called.
        """
        if not self._first_step:
            return
        self._first_step = False
        self._kernels_watch.close()
        if not (compile_facts() - self._compiled_before)["graphs"]:
            self._watching.close()  # compiled graphs would be compiled again, and it costs them nothing
        back_ends, kernels = held(pl_module, "attention"), held(pl_module, "kernel")
        calls = self._calls.calls.copy()
        if trainer.is_global_zero:
            self.facts["status"] = "running"
            self.facts["data"]["first_step_rows_hash"] = batch.rows_hash
            self.facts["ran"] = {
                "attention": _counted(back_ends, calls),
                "loss_kernel": _counted(kernels, calls),
                "loss": {
                    type(module).__name__: calls[type(module).__name__]
                    for module in _modules_of_loss(pl_module)
                },
                "kernels": self._kernels.note or self._kernels.calls,
                "precision": precision(trainer, pl_module),
                "optimizers": [optimizer_facts(optimizer) for optimizer in trainer.optimizers],
            }
            self._write_changing()
        asked: dict[str, Collection[str]] = {
            f"{what} {name}": [cls.__name__ for cls in choices]
            for what, parts in (("attention", back_ends), ("loss kernel", kernels))
            for name, choices in parts.items()
        }
        loss = getattr(pl_module, "loss", None)
        if not any(_num_scored(micro) for micro in batch.micro_batches):
            asked = {key: parts for key, parts in asked.items() if not key.startswith("loss")}
        elif isinstance(loss, nn.Module):
            asked[f"loss {type(loss).__name__}"] = [type(loss).__name__]
        check_asked_for({**asked, **self.asked_for}, {**self._kernels.calls, **calls})

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write how it ended."""
        self._end(trainer, "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write why it ended."""
        self._end(trainer, f"failed: {type(exception).__name__}: {exception}"[:500])

    def write(self) -> None:
        """Write the whole manifest or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(self.facts, indent=2, default=str, ensure_ascii=False))
        partial.replace(self.path)

    def _end(self, trainer: L.Trainer, status: str) -> None:
        self._kernels_watch.close()
        self._watching.close()
        logging.getLogger("vlmkit").removeHandler(self._warnings)
        if not trainer.is_global_zero or not self.facts:
            return
        self.facts.update(status=status, ended=_now(), steps=trainer.global_step)
        self._write_changing()

    def _write_changing(self) -> None:
        self.facts.setdefault("ran", {}).update(
            compile={**_NOT_COMPILED, **(compile_facts() - self._compiled_before)},
            warnings=list(self._warnings.lines),
        )
        self.write()


class Warnings(logging.Handler):
    """Keeps what was warned about: fallbacks warn, so they are here."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line once."""
        if len(self.lines) < MOST_WARNINGS:
            self.lines[f"{record.name}: {record.getMessage()}"] = None


def precision(trainer: L.Trainer, module: nn.Module) -> dict[str, Any]:
    """Autocast's dtype, and the dtypes of the parameters."""
    name = str(trainer.precision)
    autocast = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}.get(name)
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters()}
    return {"trainer": name, "autocast": autocast, "parameters": sorted(dtypes)}


def optimizer_facts(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Class, and how its update is computed."""
    group = optimizer.param_groups[0]
    return {
        "class": type(optimizer).__name__,
        "groups": len(optimizer.param_groups),
        **{key: group.get(key) for key in ("fused", "foreach", "capturable")},
    }


_NOT_COMPILED = {"graphs": 0, "graph_breaks": 0, "recompile_limit_hits": 0}


def compile_facts() -> Counter[str]:
    """Graphs that torch.compile has made in this process, and how often it had to break one."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return Counter()
    counters = dynamo.counters
    return Counter(
        graphs=counters["stats"].get("unique_graphs", 0),
        graph_breaks=sum(counters["graph_break"].values()),
        recompile_limit_hits=sum(
            count for key, count in counters["unimplemented"].items() if "recompile" in str(key)
        ),
    )


def _counted(
    parts: Mapping[str, tuple[type, ...]], calls: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    return {
        name: {cls.__name__: calls.get(cls.__name__, 0) for cls in choices}
        for name, choices in parts.items()
    }


def _modules_of_loss(module: Any) -> list[nn.Module]:
    loss = getattr(module, "loss", None)
    return list(loss.modules()) if isinstance(loss, nn.Module) else []


def _datamodule(trainer: L.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _num_scored(micro: VLMBatch) -> int:
    return 0 if micro.scored_index is None else len(micro.scored_index)
