"""A fit of a few lines, and processes to run it in."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vlmkit.training.sections import Sections


class Numbers(Dataset):
    """Items that name their step; `work` is done for each."""

    def __init__(self, work=None, length: int = 10_000) -> None:
        self.work, self.length = work, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.work is not None:
            self.work(index)
        return torch.tensor([float(index)])


class Line(L.LightningModule):
    """One weight; `work` is done in each step."""

    def __init__(self, work=None) -> None:
        super().__init__()
        self.sections, self.work = Sections(), work
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        with self.sections("forward"):
            if self.work is not None:
                self.work(batch_idx)
            return self.layer(batch / 10_000).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callbacks, module: Line, data: Dataset | None = None, **options) -> L.Trainer:
    loader = {k: options.pop(k) for k in ("num_workers", "worker_init_fn") if k in options}
    if loader:  # a forkserver would hand its way of starting on, and import everything again
        loader["multiprocessing_context"] = "fork"
    trainer = L.Trainer(
        **{
            "max_steps": 10_000,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
            **options,
        }
    )
    trainer.fit(module, DataLoader(data or Numbers(), batch_size=None, **loader))
    return trainer


class Apart:
    """A function that runs in a process of its own, as the leader of a group; what it prints is kept.

    Processes are forked from a server that has imported torch and lightning once.
    """

    def __init__(self, log: Path, function, *arguments, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.log = log
        self._process = context.Process(
            target=_run, args=(str(log), environment, function, arguments)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, word: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while word not in self.output:
            assert self._process.is_alive(), self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def exit_code(self, seconds: float = 30.0) -> int | None:
        """None: it still runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def two_ranks(folder: Path, function, *arguments) -> list[Apart]:
    """The same function on two ranks, in the environment that `torchrun` would give them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    return [
        Apart(folder / f"rank{k}.log", function, *arguments, **shared, LOCAL_RANK=str(k))
        for k in range(2)
    ]


def over_gloo() -> dict[str, object]:
    """Options of the trainer of a rank."""
    return {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}


def _run(log: str, environment: dict[str, str], function, arguments) -> None:
    os.setsid()
    signal.alarm(120)  # it is not to outlive a test that fails
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)
