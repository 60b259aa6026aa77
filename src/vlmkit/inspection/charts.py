"""Paths, bars and ticks of the page: numbers of a row -> geometry of SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vlmkit.inspection.media import Medium, seconds_of
from vlmkit.inspection.view import Kind, Row

PLOT_HEIGHT = 100
"""Height of a plot in units of its own; the page stretches it."""


def stretches(kinds: NDArray[np.uint8]) -> Iterator[tuple[int, int, Kind]]:
    """Start, number and kind of tokens of one kind that stand together."""
    bounds = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    for start, stop in pairwise(bounds):
        if stop > start:
            yield start, stop - start, Kind(int(kinds[start]))


def position_paths(row: Row) -> tuple[list[str], int]:
    """The three position ids over the tokens of a row, each sample a line of its own.

    Returns:
        SVG paths of time, height and width, and the value at the upper edge.
    """
    inside = [p for s in row.samples for p in (s.start, s.stop - 1)]
    top = max(1, int(row.positions.max()) if inside else 1)
    paths = []
    for axis in row.positions:
        parts: list[str] = []
        for sample in row.samples:
            values = axis[sample.start : sample.stop]
            steps = np.diff(values)
            corners = np.flatnonzero(np.diff(steps)) + 1 if len(steps) > 1 else np.array([], int)
            kept = sorted({0, *corners.tolist(), len(values) - 1})
            points = [
                f"{sample.start + i + 0.5:g} {(1 - values[i] / top) * PLOT_HEIGHT:.4g}"
                for i in kept
            ]
            parts.append("M" + "L".join(points))
        paths.append("".join(parts))
    return paths, top


def ticks(top: float, most: int = 10) -> list[float]:
    """Round numbers from 0 up to `top`, at most so many steps."""
    if top <= 0:
        return [0]
    step = 10 ** math.floor(math.log10(top / most))
    for factor in (1, 2, 5, 10):
        if top / (step * factor) <= most:
            step *= factor
            break
    return [round(i * step, 9) for i in range(int(top / step + 1e-9) + 1)]


def clock_plot(video: Medium) -> tuple[list[tuple[float, float, float]], float]:
    """Written time of each temporal patch against the times of its frames.

    Returns:
        For each patch with a legible timestamp the times of its first and last frame and the written
        one, and the largest of all times.
    """
    bars = []
    for run in video.runs:
        written = seconds_of(run.written)
        times = [time for _, time in video.sources_of(run.first_patch)]
        if written is not None and times and run.num_patches == 1:
            bars.append((times[0], times[-1], written))
    return bars, max((max(bar) for bar in bars), default=0.0) or 1.0
