"""Which section every moment of a step belongs to."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch

OTHER = "other"


class Clock(Protocol):
    """Marks moments, and says later how far apart they were."""

    def mark(self) -> Any:
        """This moment."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """From one mark to another."""
        ...

    def has_passed(self, mark: Any) -> bool:
        """Whether `seconds` up to this mark can be had without waiting."""
        ...


class HostClock:
    """When the host was where. On a GPU these would be times of launches, not of work."""

    def mark(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """See `Clock`."""
        return end - start

    def has_passed(self, mark: float) -> bool:
        """See `Clock`."""
        return True


class CudaClock:
    """When the GPU was where, from events in its current stream that are read once they have passed.

    A section lasts from the end of the work that was launched before it to the end of the work that was
    launched within it, the GPU's idle time included; nothing waits for anything.
    """

    def mark(self) -> torch.cuda.Event:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See `Clock`."""
        return start.elapsed_time(end) / 1e3

    def has_passed(self, mark: torch.cuda.Event) -> bool:
        """See `Clock`."""
        return mark.query()


class Timeline:
    """Cuts a run at the borders of sections, so that the parts of a step add up to the whole.

    A `SectionObserver`. Where no section is open, time belongs to what was last said by `outside`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: list[str] = []
        self._outside = OTHER
        self._borders: list[tuple[Any, str]] = [(clock.mark(), OTHER)]  # and what begins there
        self._ended: deque[list[tuple[Any, str]]] = deque()

    def enter(self, name: str) -> None:
        """See `SectionObserver`."""
        self._open.append(name)
        self._cut()

    def leave(self, name: str, seconds: float) -> None:
        """See `SectionObserver`."""
        if self._open:  # empty where the section began before this observer was there
            self._open.pop()
        self._cut()

    def outside(self, name: str) -> None:
        """What time without an open section belongs to from now on."""
        self._outside = name
        self._cut()

    def end_step(self) -> None:
        """A step ends here and the next begins."""
        self._cut()
        self._ended.append(self._borders)
        self._borders = self._borders[-1:]

    def finished(self) -> Iterator[dict[str, float]]:
        """Seconds by section of the steps, in order, whose times have become known."""
        while self._ended and self._clock.has_passed(self._ended[0][-1][0]):
            borders = self._ended.popleft()
            seconds: defaultdict[str, float] = defaultdict(float)
            for (start, name), (end, _) in pairwise(borders):
                seconds[name] += self._clock.seconds(start, end)
            yield dict(seconds)

    def _cut(self) -> None:
        self._borders.append((self._clock.mark(), self._open[-1] if self._open else self._outside))
