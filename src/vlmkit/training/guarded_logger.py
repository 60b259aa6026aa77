"""Logging that cannot end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers.logger import DummyExperiment, Logger

_log = logging.getLogger(__name__)


class GuardedLogger(Logger):
    """Passes everything on to another logger; what that raises becomes one warning, and is counted.

    An `experiment` that cannot be opened is replaced by one that does nothing. A logger that hangs is
    not helped here: see `vlmkit.training.survival.watchdog`.

    Attributes:
        wrapped: the other logger.
        num_failures: calls that it did not survive.
    """

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.wrapped = logger
        self.num_failures = 0

    @property
    def name(self) -> str | None:
        """Of the other logger."""
        return self._try("name", lambda: self.wrapped.name, type(self.wrapped).__name__)  # type: ignore[no-any-return]

    @property
    def version(self) -> int | str | None:
        """Of the other logger."""
        return self._try("version", lambda: self.wrapped.version, "")  # type: ignore[no-any-return]

    @property
    def root_dir(self) -> str | None:
        """Of the other logger."""
        return self._try("root_dir", lambda: self.wrapped.root_dir, None)  # type: ignore[no-any-return]

    @property
    def log_dir(self) -> str | None:
        """Of the other logger."""
        return self._try("log_dir", lambda: self.wrapped.log_dir, None)  # type: ignore[no-any-return]

    @property
    def save_dir(self) -> str | None:
        """Of the other logger."""
        return self._try("save_dir", lambda: self.wrapped.save_dir, None)  # type: ignore[no-any-return]

    @property
    def group_separator(self) -> str:
        """Of the other logger."""
        return self._try("group_separator", lambda: self.wrapped.group_separator, "/")  # type: ignore[no-any-return]

    @property
    def experiment(self) -> Any:
        """Of the other logger.

        Raises:
            AttributeError: the other logger has none.
        """
        if not hasattr(type(self.wrapped), "experiment"):
            raise AttributeError(f"{type(self.wrapped).__name__} has no experiment")
        return self._try("experiment", lambda: self.wrapped.experiment, DummyExperiment())  # type: ignore[attr-defined]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass on."""
        self._try("log_metrics", lambda: self.wrapped.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Pass on."""
        self._try("log_hyperparams", lambda: self.wrapped.log_hyperparams(params, *args, **kwargs))

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Pass on."""
        self._try("log_graph", lambda: self.wrapped.log_graph(model, input_array))

    def save(self) -> None:
        """Pass on."""
        self._try("save", self.wrapped.save)

    def finalize(self, status: str) -> None:
        """Pass on, and say how much was lost."""
        self._try("finalize", lambda: self.wrapped.finalize(status))
        if self.num_failures > 1:
            _log.warning(
                "%s failed %d times in this run", type(self.wrapped).__name__, self.num_failures
            )

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Pass on."""
        self._try(
            "after_save_checkpoint",
            lambda: self.wrapped.after_save_checkpoint(checkpoint_callback),
        )

    def __getattr__(self, name: str) -> Any:
        """What only the other logger has."""
        if name == "wrapped":  # a copy in the making
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def _try(self, what: str, call: Callable[[], Any], instead: Any = None) -> Any:
        try:
            return call()
        except Exception as error:
            self.num_failures += 1
            if self.num_failures == 1:
                _log.warning(
                    "%s.%s failed (%s: %s); training goes on, further failures are only counted",
                    type(self.wrapped).__name__,
                    what,
                    type(error).__name__,
                    error,
                )
            return instead
