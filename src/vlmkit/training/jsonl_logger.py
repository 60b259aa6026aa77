"""Metrics as lines of JSON: always written, readable without any tool."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class JSONLLogger(Logger):
    """One line per logging step: `{"step": ..., "time_s": ..., "train/loss": ...}`.

    What is not a finite number is null, as JSON has no other word for it.

    Args:
        path: the file; lines are appended and flushed one by one.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._start = time.time()

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """The run folder is the version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        line: dict[str, Any] = {"step": step, "time_s": round(time.time() - self._start, 3)}
        numbers = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        line.update({k: v if math.isfinite(v) else None for k, v in numbers.items()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The whole config is in the run folder; nothing to add."""
