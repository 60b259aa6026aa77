"""A run that is asked to stop saves and leaves, so that it can be taken up again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from vlmkit.training.survival.host_group import HostGroup

logger = logging.getLogger(__name__)

RESUMABLE = 75
"""Exit code of a run that has stopped on request: EX_TEMPFAIL of sysexits.h, "try again later"."""


@runtime_checkable
class SavesNow(Protocol):
    """A callback that can be asked for a checkpoint."""

    def save_now(self, trainer: L.Trainer) -> object:
        """Write a checkpoint of the step that has just been taken; called on all ranks."""
        ...


class StopSignals(Callback):
    """On SIGTERM or SIGUSR1: finish the optimiser step, save, and leave with exit code 75.

    It is enough that one rank gets the signal: after each step the ranks agree, which costs two of them
    0.32 ms. A validation that is under way is finished first. A second signal ends the process at once;
    those that come within `patience_s` of the first are taken for the same one, since schedulers and
    launchers each send theirs. `Trainer.validate` on its own is left at once, also with 75.

    While it trains, these handlers stand in place of Lightning's, which would exchange tensors within
    the handler and exit with 0; afterwards Lightning's are back. Loader workers that are to outlive a
    signal to the whole job need `vlmkit.child_signals.prepare_worker`. Ranks other than 0 that
    Lightning's own launcher started leave with 0, since that launcher kills rank 0 over any other code.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        patience_s: float = 5.0,
        save: Callable[[L.Trainer], object] | None = None,
    ) -> None:
        """Keep the settings.

        Args:
            signals: names.
            patience_s: from when on a second signal is meant as one.
            save: writes a checkpoint; None: the trainer's callbacks that are `SavesNow` do.

        Raises:
            ValueError: there is no such signal.
        """
        known = {each.name: each for each in signal.Signals}
        if unknown := [name for name in signals if name not in known]:
            raise ValueError(f"signals: {unknown[0]} is not the name of a signal")
        self.signals = tuple(known[name] for name in signals)
        self.patience_s, self.save = patience_s, save
        self._before: dict[signal.Signals, Any] = {}
        self._received: str | None = None
        self._received_at = 0.0
        self._owner = 0
        self._in_fit = False
        self._ranks: HostGroup | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the place of Lightning's handlers, which it has just installed."""
        if self.save is None and not any(isinstance(c, SavesNow) for c in self._callbacks(trainer)):
            logger.warning(
                "nothing saves when the run is stopped: no callback has save_now(trainer)"
            )
        self._in_fit = True
        self._ranks = HostGroup()
        self._install()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop here if any rank has been asked to."""
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation on its own has no step to finish."""
        if trainer.state.fn is TrainerFn.VALIDATING:
            self._in_fit = False
            self._install()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop here if any rank has been asked to."""
        if trainer.state.fn is TrainerFn.VALIDATING:
            self._restore()
        elif self._in_fit:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the handlers back."""
        self._stop_if_asked(trainer)
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the handlers back."""
        self._restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the handlers back."""
        self._restore()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("signals are not watched: the trainer does not run in the main thread")
            return
        self._restore()
        self._owner, self._received = os.getpid(), None
        self._before = {each: signal.signal(each, self._handle) for each in self.signals}

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if os.getpid() != self._owner:  # a worker that was forked with this handler
            _die_of(number)
        elif self._received is None:
            self._received, self._received_at = name, now
            if not self._in_fit:
                raise SystemExit(RESUMABLE)
            # not print: the signal may have come in the middle of one
            os.write(2, f"\n{name}: will save and stop after this step\n".encode())
        elif now - self._received_at > self.patience_s:
            _die_of(number)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        assert self._ranks is not None
        if not self._ranks.max(int(self._received is not None)):
            return
        if self.save is not None:
            self.save(trainer)
        else:
            for callback in self._callbacks(trainer):
                if isinstance(callback, SavesNow):
                    callback.save_now(trainer)
        if trainer.is_global_zero:
            print(f"stopped at step {trainer.global_step}; exit code {RESUMABLE}", flush=True)
        environment = getattr(trainer.strategy, "cluster_environment", None)
        is_launched = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        raise SystemExit(0 if is_launched else RESUMABLE)

    @staticmethod
    def _callbacks(trainer: L.Trainer) -> list[Any]:
        return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
