"""Progress of work on files: silent at first, then a bar, or a line now and then in a log."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class FileProgress:
    """Shows how far work has come once it has taken two seconds.

    Args:
        what: the work, such as `indexing train.jsonl`.
        total: its size, usually in bytes.
        silent_s: time before anything is shown.
        line_every_s: time between lines where there is no terminal.
    """

    def __init__(
        self, what: str, total: int, silent_s: float = 2.0, line_every_s: float = 10.0
    ) -> None:
        self.what, self.total, self.done = what, total, 0
        self._line_every_s = line_every_s
        self._start = time.monotonic()
        self._next = self._start + silent_s
        self._bar: Progress | None = None

    def advance(self, amount: int) -> None:
        """Count work as done."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() >= self._next:
            self._show()

    def _show(self) -> None:
        console = Console(stderr=True)
        if not console.is_terminal:
            self._next = time.monotonic() + self._line_every_s
            logger.info("%s: %.0f%%", self.what, 100 * self.done / max(self.total, 1))
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(self.what, total=self.total, completed=self.done)
        self._bar.start()

    def __enter__(self) -> FileProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
