"""Opens the sections that lie between Lightning's hooks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vlmkit.training.stepped_module import SteppedModule


class SectionMarks(Callback):
    """Marks waiting for data and validating; the training step marks the rest itself."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first batch is being waited for."""
        self._mark(pl_module, "data")

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """The batch has come."""
        self._open.close()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is being waited for."""
        self._mark(pl_module, "data")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Held-out samples are being scored."""
        self._mark(pl_module, "validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Back to training, if that is what was interrupted."""
        self._open.close()
        if trainer.state.fn == "fit":
            self._mark(pl_module, "data")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is waited for any more."""
        self._open.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Nothing is waited for any more."""
        self._open.close()

    def _mark(self, module: L.LightningModule, name: str) -> None:
        assert isinstance(module, SteppedModule)
        self._open.close()
        self._open = ExitStack()
        self._open.enter_context(module.sections(name))
