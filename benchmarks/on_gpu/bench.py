"""What a case is given, and where it writes what it found."""

from __future__ import annotations

import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.on_gpu.scale import Scale
from benchmarks.step.measure import seconds


@dataclass(frozen=True)
class Case:
    """One part of the benchmark.

    Attributes:
        run: does it.
        seconds: it is given at least, on a GPU; a guess until it has been run on one.
        what: in words.
    """

    run: Callable[[Bench], None]
    seconds: float
    what: str


class Bench:
    """Takes the findings of one case, and writes them after each: a case that is killed keeps what it had.

    Args:
        device: to run on.
        scale: full or toy.
        file: where the findings go.
        seconds: for all of the case.
    """

    def __init__(self, device: torch.device, scale: Scale, file: Path, seconds: float) -> None:
        self.device, self.scale, self.file = device, scale, file
        self._end = time.monotonic() + seconds
        self._given = seconds
        self.found: dict[str, Any] = {
            "status": "running", "rows": [], "goals": [], "notes": [], "errors": [],
        }  # fmt: skip

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA is what runs."""
        return self.device.type == "cuda"

    @property
    def share_left(self) -> float:
        """Of the time of the case."""
        return max(self._end - time.monotonic(), 0.0) / self._given

    def row(self, **values: Any) -> None:
        """One line of the case's table."""
        self.found["rows"].append(values)
        line = ", ".join(f"{key} {shown(value)}" for key, value in values.items())
        print(f"  {line}", flush=True)
        self.write()

    def goal(self, what: str, value: float, least: float) -> None:
        """A figure that is to be reached; a toy or a CPU reaches none, and has none."""
        if self.on_gpu and not self.scale.is_toy:
            reached = value >= least
            self.found["goals"].append(
                {"what": what, "value": value, "least": least, "reached": reached}
            )
            print(f"  goal: {what} {value:.3g} of {least:.3g}", flush=True)
            self.write()

    def note(self, text: str) -> None:
        """Something that a reader of the table must know."""
        self.found["notes"].append(text)
        print(f"  {text}", flush=True)
        self.write()

    def fail(self, what: str, reason: str) -> None:
        """Something is wrong; the rest goes on."""
        self.found["errors"].append({"what": what, "error": reason})
        print(f"  {what}: {reason}", flush=True)
        self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        fresh = self.file.with_suffix(".part")
        fresh.write_text(json.dumps(self.found))
        os.replace(fresh, self.file)

    def share(self, value: float) -> str:
        """As a percentage; of a toy it would mean nothing."""
        return "" if self.scale.is_toy else f"{value:.1%}"

    @contextmanager
    def attempt(self, what: str, is_ours: bool = True) -> Iterator[None]:
        """Report what goes wrong inside, give its memory back, and go on.

        Args:
            what: is attempted.
            is_ours: whether the case has failed then; what an alternative cannot do is noted.
        """
        try:
            yield
        except Exception as error:
            lines = (str(error).strip() or type(error).__name__).splitlines()
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {lines[0][:300]} ({where.filename}:{where.lineno})"
            if is_ours:
                self.fail(what, reason)
            else:
                self.note(f"could not be run: {what}: {reason}")
            traceback.clear_frames(error.__traceback__)  # they hold tensors
            del error
        self.free()

    def free(self) -> None:
        """Give memory back that nothing refers to."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def timed(
        self, work: Callable[[], object], rounds: int, warm: int = 1, until: float = 0.0
    ) -> list[float]:
        """Seconds of each round; fewer rounds, but two, once less than `until` of the case's time is left."""
        for _ in range(warm):
            work()
        spent: list[float] = []
        while len(spent) < rounds and (len(spent) < 2 or self.share_left > until):
            spent.append(seconds(work, self.device))
        return spent


def shown(value: Any) -> str:
    """A number with three digits that count, anything else as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def spread(values: list[float]) -> str:
    """Median, and least to most."""
    return f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})"
