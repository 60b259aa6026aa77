"""Histograms of what is in a data set: one line per source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from vlmkit.data.sizes.measured import Measured
from vlmkit.evaluation.plots import BAD, MUTED

_COLOUR = "#1f4e8c"
_BINS = 60
_MOST_SOURCES = 16
_HEIGHT = 0.85  # of a histogram, where lines are 1 apart

Values = Callable[[Measured], NDArray]


def data_figure(measured: Mapping[str, Measured], row_tokens: int, target: Path) -> None:
    """Draw how tokens, patches and aspect ratios of sources are spread.

    Args:
        measured: the sources, by name; of more than sixteen, those with the most samples are shown.
        row_tokens: capacity of a row, marked among the lengths.
        target: PNG to write.
    """
    largest = sorted(measured, key=lambda name: -len(measured[name]))[:_MOST_SOURCES]
    shown = {name: part for name, part in measured.items() if name in largest}
    figure = Figure(figsize=(12, 1.5 + 0.42 * len(shown)), layout="constrained")
    lengths, patches, ratios = figure.subplots(1, 3, sharey=True)
    _histograms(lengths, shown, lambda part: part.samples.whole_tokens, mark=row_tokens)
    lengths.set_xlabel("tokens of a sample, before it is made to fit")
    lengths.set_title(f"row: {row_tokens:,}", fontsize=8, color=BAD, loc="right")
    _histograms(patches, shown, lambda part: part.samples.patches)
    patches.set_xlabel("patches of a sample that has any")
    _histograms(ratios, shown, lambda part: part.media.width / part.media.height, mark=1)
    ratios.set_xlabel("width over height of pictures and videos")
    lengths.set_ylim(len(shown) - 0.5, -0.5)
    lengths.set_yticks(
        [row + _HEIGHT / 2 for row in range(len(shown))], [_short(name) for name in shown]
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)


def _histograms(
    axes: Axes, shown: Mapping[str, Measured], values_of: Values, mark: float | None = None
) -> None:
    """A histogram per source over one logarithmic axis, each as high as its own largest bin."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    found = [values_of(part) for part in shown.values()]
    found = [values[values > 0] for values in found]
    every = np.concatenate([*found, *([] if mark is None else [[mark]])])
    if not sum(map(len, found)):
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xticks([])
        return
    edges = np.geomspace(every.min() / 1.3, every.max() * 1.3, _BINS)
    for row, values in enumerate(found):
        base = row + _HEIGHT / 2
        axes.axhline(base, color=MUTED, linewidth=0.4)
        if len(values):
            counts = np.histogram(values, edges)[0]
            heights = base - _HEIGHT * counts / counts.max()
            axes.fill_between(edges[:-1], base, heights, step="post", color=_COLOUR, linewidth=0)
            axes.plot(np.median(values), base + 0.05, "^", color=BAD, markersize=3, clip_on=False)
    if mark is not None:
        axes.axvline(mark, color=BAD, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    decades = np.log10(edges[-1] / edges[0])
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades > 2.5 else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
