"""Scores with their intervals on one axis: numbers -> places in per cent of its width."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with round numbers on it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def covering(cls, values: Iterable[float | None], always: Iterable[float] = ()) -> Axis:
        """An axis that has room for all values; those that are not finite take none.

        Args:
            values: to show.
            always: further places that must be on it, such as 0.
        """
        finite = [
            value for value in (*values, *always) if value is not None and math.isfinite(value)
        ]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        found = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = tuple(round(float(tick), 9) for tick in found)
        return cls(ticks[0], ticks[-1], ticks)

    def at(self, value: float) -> float:
        """Place of a value, 0 to 100."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A value with its interval on the axis, in per cent; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    others: tuple[tuple[float, str], ...] = ()  # further values with their names
    line: float | None = None  # chance, or no difference

    @classmethod
    def on(
        cls,
        axis: Axis,
        value: float,
        low: float,
        high: float,
        *,
        others: Iterable[tuple[float, str]] = (),
        line: float | None = None,
    ) -> Mark:
        """Put numbers on an axis."""

        def at(number: float | None) -> float | None:
            return axis.at(number) if number is not None and math.isfinite(number) else None

        placed = [(at(number), name) for number, name in others]
        return cls(
            value=at(value),
            low=at(low),
            high=at(high),
            others=tuple((place, name) for place, name in placed if place is not None),
            line=at(line),
        )
