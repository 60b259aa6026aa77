"""Bars and lines drawn by matplotlib, with questions whose answers are numbers or names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vlmkit.data.record import ImagePart, TextPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, one_of, some_of

_DPI = 100
_PLACES = ("Athens", "Cairo", "Lisbon", "Nairobi", "Oslo", "Prague", "Quito", "Tokyo", "Vienna")
_SERIES = ("coffee", "tea", "cocoa", "juice", "milk")
_COLOURS = ("#4c8bb5", "#d98f3f", "#7aa656", "#b3679b", "#8f7fd0", "#c5605a")


class Chart(NamedTuple):
    """What is drawn.

    Attributes:
        lines: whether series are lines; else groups of bars.
        places: along the axis.
        series: names.
        values: (series, places).
        written: whether numbers stand beside their marks.
        first_colour: of the series.
    """

    lines: bool
    places: tuple[str, ...]
    series: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    written: bool
    first_colour: int


Ask = Callable[[Chart, Rng], tuple[str, str]]
"""Gives question and answer."""


def ask_value(chart: Chart, rng: Rng) -> tuple[str, str]:
    """What is the value of one mark?"""
    series, place = int(rng.integers(len(chart.series))), int(rng.integers(len(chart.places)))
    words = f"What is the value of {chart.series[series]} in {chart.places[place]}? Answer with a number."
    return words, str(chart.values[series][place])


def ask_largest(chart: Chart, rng: Rng) -> tuple[str, str]:
    """Where is a series largest? Only one place is."""
    series = int(rng.integers(len(chart.series)))
    place = chart.places[int(np.argmax(chart.values[series]))]
    return f"In which place is {chart.series[series]} largest? Answer with its name.", place


def ask_difference(chart: Chart, rng: Rng) -> tuple[str, str]:
    """How far apart are two places of a series? Far enough to be read off."""
    series = int(rng.integers(len(chart.series)))
    values = np.array(chart.values[series])
    high, low = int(values.argmax()), int(values.argmin())
    words = (
        f"By how much is {chart.series[series]} larger in {chart.places[high]} than in "
        f"{chart.places[low]}? Answer with a number."
    )
    return words, str(values[high] - values[low])


QUESTIONS: dict[str, Ask] = {
    "value": ask_value,
    "largest": ask_largest,
    "difference": ask_difference,
}


@dataclass(frozen=True, kw_only=True)
class ReadChart:
    """Charts of each form with questions of each sort, in turn.

    Attributes:
        most_places: along the axis; at least three.
        most_series: of bars or lines.
        least: value.
        largest: value.
        written_share: share of charts with numbers beside the marks; the others are read off the axis.
        width: of the picture; a multiple of 4.
        height: of the picture; a multiple of 4.
    """

    most_places: int = 6
    most_series: int = 3
    least: int = 20
    largest: int = 95
    written_share: float = 0.5
    width: int = 560
    height: int = 400

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not 3 <= self.most_places <= len(_PLACES) or not 1 <= self.most_series <= len(_SERIES):
            raise ConfigError(
                f"most_places is {self.most_places} and most_series {self.most_series}; they must lie in "
                f"3..{len(_PLACES)} and 1..{len(_SERIES)}"
            )
        if not 0 <= self.least <= self.largest - 40:
            raise ConfigError(
                f"least is {self.least} and largest {self.largest}; there must be 40 between them"
            )

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        sort = list(QUESTIONS)[index % len(QUESTIONS)]
        lines = index // len(QUESTIONS) % 2 == 1
        places = some_of(rng, _PLACES, int(rng.integers(3, self.most_places + 1)))
        series = some_of(rng, _SERIES, int(rng.integers(1, self.most_series + 1)))
        values: list[tuple[int, ...]] = []
        for _ in series:
            values.append(self._values(rng, len(places), values if lines else []))
        chart = Chart(
            lines=lines,
            places=tuple(places),
            series=tuple(series),
            values=tuple(values),
            written=bool(rng.random() < self.written_share),
            first_colour=int(rng.integers(len(_COLOURS))),
        )
        words, answer = QUESTIONS[sort](chart, rng)
        image = DrawnImage(
            partial(draw_chart, chart, self.width, self.height), self.width, self.height
        )
        categories = {
            "question": sort,
            "chart": "lines" if lines else "bars",
            "numbers": "written" if chart.written else "read off",
        }
        return Made(parts=(ImagePart(image), TextPart(words)), target=answer, categories=categories)

    def _values(self, rng: Rng, count: int, others: list[tuple[int, ...]]) -> tuple[int, ...]:
        """Different values; the largest is at least 30 above the smallest and 5 above the next.

        Lines also keep 9 apart from each other, so that no number is written over another.
        """
        scale = np.arange(self.least, self.largest + 1)
        taken = np.array(others or np.zeros((0, count)))  # (series, places)
        while True:
            free = [scale[(abs(scale - column[:, None]) >= 9).all(axis=0)] for column in taken.T]
            values = np.array([one_of(rng, choices) for choices in free])
            ordered = np.sort(values)
            apart = ordered[-1] - ordered[0] >= 30 and ordered[-1] - ordered[-2] >= 5
            if apart and len(set(values.tolist())) == count:
                return tuple(values.tolist())


def draw_chart(chart: Chart, width: int, height: int) -> Image.Image:
    """By matplotlib."""
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(chart.places))
    share = 0.8 / len(chart.series)
    for i, (name, values) in enumerate(zip(chart.series, chart.values, strict=True)):
        colour = _COLOURS[(chart.first_colour + i) % len(_COLOURS)]
        middles = places if chart.lines else places - 0.4 + share * (i + 0.5)
        if chart.lines:
            axes.plot(middles, values, marker="o", color=colour, label=name, linewidth=2)
        else:
            axes.bar(middles, values, share * 0.92, color=colour, label=name)
        for x, value in zip(middles, values, strict=True):
            if chart.written:
                axes.annotate(
                    str(value), (x, value), (0, 4), textcoords="offset points",
                    ha="center", va="bottom", fontsize=9, color=colour if chart.lines else "black",
                )  # fmt: skip
    axes.set_xticks(places, chart.places)
    top = max(max(values) for values in chart.values)
    axes.set_ylim(0, 10 * (top // 10 + 2))
    axes.set_yticks(range(0, 10 * (top // 10 + 2) + 1, 10))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=len(chart.series), frameon=False
    )
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
