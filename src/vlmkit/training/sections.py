"""Names what the training process is doing, for whoever measures it or watches that it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class SectionObserver(Protocol):
    """Is told when a section begins and ends."""

    def enter(self, name: str) -> None:
        """A section has begun; the one before goes on when it ends."""
        ...

    def leave(self, name: str, seconds: float) -> None:
        """A section has ended; `seconds` excludes sections within it."""
        ...


class Sections:
    """`with sections("forward"): ...`, nested at will.

    One per run, handed to everything that takes time. Names in use: `data`, `forward`, `backward`,
    `collective`, `optimizer`, `validation`, `save`.
    """

    def __init__(self) -> None:
        self._observers: list[SectionObserver] = []
        self._open: list[tuple[str, float]] = []  # name, seconds spent in sections within it

    def attach(self, observer: SectionObserver) -> None:
        """Tell this observer too, from now on."""
        self._observers.append(observer)

    @property
    def current(self) -> str | None:
        """The innermost open section."""
        return self._open[-1][0] if self._open else None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Open a section for the length of a `with` block."""
        for observer in self._observers:
            observer.enter(name)
        self._open.append((name, 0.0))
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            _, within = self._open.pop()
            if self._open:
                outer, so_far = self._open[-1]
                self._open[-1] = (outer, so_far + elapsed)
            for observer in self._observers:
                observer.leave(name, elapsed - within)
