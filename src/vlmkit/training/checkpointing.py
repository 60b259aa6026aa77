"""When a run saves itself."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from vlmkit.checkpoint.folder import DiskFullError
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.device_memory import GIB
from vlmkit.training.averaging import WeightAverage
from vlmkit.training.stepped_module import SteppedModule

log = logging.getLogger(__name__)


class Checkpointing(Checkpoint):
    """Saves every so many steps, and after the last one.

    A periodic checkpoint for which there is no room is skipped with a warning: those that are there stay,
    and the run goes on. The last one must succeed.

    Args:
        store: where they go, and which of them stay.
        every_n_steps: optimiser steps between checkpoints.
    """

    def __init__(self, store: CheckpointStore, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be positive")
        self.store, self.every_n_steps = store, every_n_steps
        self._saved_step: int | None = None
        self._is_unlogged = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a run that could not save itself.

        Raises:
            DiskFullError: there is no room for one checkpoint.
        """
        self._saved_step = trainer.global_step if trainer.ckpt_path else None
        self.store.folder.mkdir(parents=True, exist_ok=True)
        weights = sum(p.nbytes for p in pl_module.parameters())
        moments = 2 * sum(p.nbytes for p in pl_module.parameters() if p.requires_grad)
        free = shutil.disk_usage(self.store.folder).free
        if weights + moments > free:
            raise DiskFullError(
                f"{self.store.folder}: a checkpoint takes about {(weights + moments) / GIB:.2f} GiB, "
                f"{free / GIB:.2f} GiB are free. Name another run_dir, or make room"
            )

    def on_train_batch_start(self, *args: Any) -> None:
        """The line of this step goes to the logs after all `on_train_batch_end`."""
        self._is_unlogged = True

    def on_validation_start(self, *args: Any) -> None:
        """It has gone there."""
        self._is_unlogged = False

    def on_train_epoch_end(self, *args: Any) -> None:
        """It has gone there."""
        self._is_unlogged = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time."""
        if trainer.global_step % self.every_n_steps == 0:
            is_saved = True
            try:
                self.save(trainer)
            except DiskFullError as error:
                is_saved = False
                log.warning("step %d is not saved: %s", trainer.global_step, error)
                trainer.strategy.barrier()  # the other ranks wait for the end of the save
            if not trainer.strategy.broadcast(is_saved):
                self._saved_step = None  # also on ranks that only waited

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what the run ends with."""
        self.save(trainer)

    def save_now(self, trainer: L.Trainer) -> None:
        """Save before the run is left, and log its last step, which Lightning does not get to any more."""
        self.save(trainer)
        if self._is_unlogged and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            found = trainer.logged_metrics.items()
            metrics = {key: float(value) for key, value in found if not key.startswith("val/")}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step - 1)

    def restore(self, trainer: L.Trainer, back: int) -> bool:
        """Put weights, average and moments of an earlier checkpoint in place; steps, schedule and data go on.

        Args:
            trainer: which is training.
            back: 1 for the newest checkpoint, 2 for the one before.

        Returns:
            Whether there was such a checkpoint.

        Raises:
            CheckpointError: it is damaged; names the file.
        """
        # rank 0's view of the disk decides
        steps: list[int] = trainer.strategy.broadcast(self.store.complete())
        if len(steps) < back:
            log.warning("there are %d checkpoints, none to go %d back to", len(steps), back)
            return False
        strategy, step = trainer.strategy, steps[-back]
        checkpoint = strategy.load_checkpoint(self.store.load(step).path, weights_only=True)
        strategy.load_model_state_dict(checkpoint)
        settings = [[_settings(g) for g in each.param_groups] for each in strategy.optimizers]
        strategy.load_optimizer_state_dict(checkpoint)
        for optimizer, groups in zip(strategy.optimizers, settings, strict=True):
            for group, kept in zip(optimizer.param_groups, groups, strict=True):
                group.update(
                    kept
                )  # the schedule goes on, so the rates of that step must not return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, WeightAverage):  # of weights that have been given up
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
                callback.on_fit_start(trainer, trainer.lightning_module)
        strategy.barrier()  # all have read it
        if trainer.is_global_zero:  # a crash must not bring back what was gone back from
            for later in steps[len(steps) - back + 1 :]:
                self.store.remove(later)
        log.warning("weights and moments are those of step %d again", step)
        return True

    def save(self, trainer: L.Trainer) -> Path:
        """Save now, unless this step is saved already.

        Raises:
            CheckpointError: it cannot be written.
        """
        step = trainer.global_step
        path = self.store.path(step)
        if self._saved_step == step:
            return path
        module = trainer.lightning_module
        assert isinstance(module, SteppedModule)
        with module.sections("save"):
            if trainer.is_global_zero:
                self.store.clean()
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                self.store.retain(step)
        self._saved_step = step
        return path


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
