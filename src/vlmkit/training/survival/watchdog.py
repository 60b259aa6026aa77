"""Ends a run that hangs, and says where."""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import psutil
from lightning.pytorch.callbacks import Callback

from vlmkit.child_signals import STACKS_FOLDER
from vlmkit.training.sections import Sections
from vlmkit.training.survival.stacks import own_children, write_stacks

HUNG = 124
"""Exit code of a run that the watchdog has ended, as of `timeout(1)`."""

OTHER = "other"
"""What is in no section: setting up, logging, callbacks."""

LIMITS_S = {
    "data": 600.0,
    "forward": 600.0,
    "backward": 600.0,
    "optimizer": 600.0,
    "validation": 600.0,  # of a batch
    "collective": 900.0,  # longer than the others, so that the rank that is late is found first
    "save": 1800.0,
    OTHER: 600.0,
}


@runtime_checkable
class KnowsRanks(Protocol):
    """A callback that can tell which other ranks are silent."""

    def who_is_silent(self) -> str | None:
        """A line that names them; None where there are none."""
        ...


class Watchdog(Callback):
    """Ends the process when a section lasts too long, with the stacks of all threads in a file.

    It watches from the beginning of a fit or a validation to its end. A section's time counts from the
    last change of section or `beat`. When it is over, a thread writes `hang-rank<k>.txt`: the stacks of
    this process and of its children, loader workers and decoding processes included. Then it kills the
    children and leaves with exit code 124. Every rank watches itself.

    Code that hangs without letting Python run stops that thread too. Then a timer in C prints the stacks
    of this process on the standard error output and leaves with exit code 1, at most
    `limit + grace_s + 1` seconds after the section began; children notice that their parent is gone.

    Backends have limits of their own: with NCCL the strategy's `timeout` must be longer than that of
    `collective`, or the backend ends the process first.

    Entering and leaving a section takes 0.7 us more than unwatched. Setting the timer takes 53 us more,
    once a second, and where the limit changes from one section to the next.
    """

    def __init__(
        self,
        folder: str | Path,
        limits_s: Mapping[str, float] | None = None,
        first_factor: float = 3.0,
        grace_s: float = 30.0,
    ) -> None:
        """Keep the settings.

        Args:
            folder: of the run.
            limits_s: seconds by section, where they differ from `LIMITS_S`; a section that is not there
                has the limit of `other`.
            first_factor: how much longer a section may last the first time, when code is compiled.
            grace_s: for writing the file, and for the timer that needs no Python.

        Raises:
            ValueError: a limit is not positive.
        """
        self.folder = Path(folder)
        self.limits_s = {**LIMITS_S, **(limits_s or {})}
        self.first_factor, self.grace_s = first_factor, grace_s
        for name, limit in (*self.limits_s.items(), ("grace_s", grace_s)):
            if not limit > 0:
                raise ValueError(f"{name} may last {limit} s; the limit must be positive")
        if first_factor < 1:
            raise ValueError(f"first_factor is {first_factor}; it must be 1 or more")
        self._rank = 0
        self._open: list[str] = []
        self._known: set[str] = set()  # sections that have ended once
        self._state = (OTHER, 0.0, 0.0)  # section, since when, limit
        self._armed_until = 0.0
        self._watched: Sections | None = None
        self._stop: threading.Event | None = None
        self._stacks = Path()
        self._others: list[KnowsRanks] = []

    def start(self, rank: int = 0) -> None:
        """Begin to watch. Processes that are started from now on can tell their stacks."""
        self.stop()
        self._rank = rank
        self._open, self._known = [], set()
        self._stacks = Path(tempfile.mkdtemp(prefix="vlmkit-stacks-"))
        os.environ[STACKS_FOLDER] = str(self._stacks)
        self._stop = threading.Event()
        self.beat()
        threading.Thread(
            target=self._watch, args=(self._stop,), name="watchdog", daemon=True
        ).start()

    def stop(self) -> None:
        """Watch no more."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None
            faulthandler.cancel_dump_traceback_later()
            self._armed_until = 0.0
            os.environ.pop(STACKS_FOLDER, None)
            shutil.rmtree(self._stacks, ignore_errors=True)

    def beat(self) -> None:
        """The current section goes on: its time counts from here."""
        if self._stop is None:
            return
        name = self._open[-1] if self._open else OTHER
        limit = self.limits_s.get(name, self.limits_s[OTHER])
        if name not in self._known:
            limit *= self.first_factor
        now = time.monotonic()
        self._state = (name, now, limit)
        needed = now + limit + self.grace_s
        if not self._armed_until - 1 <= needed <= self._armed_until:  # too late, or too early
            self._armed_until = needed + 1
            faulthandler.dump_traceback_later(limit + self.grace_s + 1, exit=True, file=2)

    def enter(self, name: str) -> None:
        """See `SectionObserver.enter`."""
        if not self._open:
            self._known.add(OTHER)
        self._open.append(name)
        self.beat()

    def leave(self, name: str, seconds: float) -> None:
        """See `SectionObserver.leave`."""
        if self._open:
            self._open.pop()
        self._known.add(name)
        self.beat()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin, and be told of the module's sections if it has them."""
        sections = getattr(pl_module, "sections", None)
        if isinstance(sections, Sections) and sections is not self._watched:
            sections.attach(self)
            self._watched = sections
        self._others = [each for each in trainer.callbacks if isinstance(each, KnowsRanks)]
        self.start(trainer.global_rank)

    def on_train_batch_start(self, *args: Any) -> None:
        """A sign of life."""
        self.beat()

    def on_train_batch_end(self, *args: Any) -> None:
        """A sign of life."""
        self.beat()

    def on_validation_batch_start(self, *args: Any) -> None:
        """A sign of life."""
        self.beat()

    def on_validation_batch_end(self, *args: Any) -> None:
        """A sign of life."""
        self.beat()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End."""
        self.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End."""
        self.stop()

    def _watch(self, stop: threading.Event) -> None:
        every_s = min(0.5, min(self.limits_s.values()) / 4)
        while not stop.wait(every_s):
            name, since, limit = self._state
            lasted = time.monotonic() - since
            if lasted > limit:
                self._end(name, lasted, limit)

    def _end(self, name: str, lasted: float, limit: float) -> None:
        """Write, kill, leave."""
        # whatever hangs in here, a network disk for one, this gets the process out
        faulthandler.dump_traceback_later(self.grace_s, exit=True, file=2)
        children: list[psutil.Process] = []
        try:
            path = self.folder / f"hang-rank{self._rank}.txt"
            what = f"rank {self._rank} hangs: `{name}` has lasted {lasted:.1f} s, its limit is {limit:g} s"
            for others in self._others:
                with suppress(Exception):  # whatever is wrong there, this one must end
                    what += f"; {line}" if (line := others.who_is_silent()) else ""
            children = own_children()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    self._report(file, what, children)
                where = f"the stacks of all threads are in {path}"
            except OSError as error:
                where = f"{path} cannot be written ({error})"
                self._report(sys.__stderr__ or sys.stderr, what, children)
            print(
                f"\n{what}; {where}. The run ends with exit code {HUNG}; a longer limit is "
                f"limits_s.{name} of the watchdog.",
                file=sys.stderr,
                flush=True,
            )
        finally:
            for child in children:
                with suppress(psutil.Error):
                    child.kill()
            shutil.rmtree(self._stacks, ignore_errors=True)
            os._exit(HUNG)

    def _report(self, file: TextIO, what: str, children: list[psutil.Process]) -> None:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {what}\n\n")
        write_stacks(file, children, self._stacks)
        file.write("\n")
