"""Pictures of a run: the loss curve, and a sheet of questions with answers and predictions."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

GOOD, BAD, MUTED = "#1a7f37", "#b42318", "#667085"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A picture with its question, the right answer and the model's."""

    picture: NDArray[np.uint8]  # (height, width, 3)
    source: str
    question: str
    answer: str
    prediction: str


def loss_curve(metrics: Path, target: Path) -> None:
    """Draw training loss and validation exact match from a run's `metrics.jsonl`.

    Args:
        metrics: the file of metrics.
        target: PNG to write.
    """
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, losses = _series(rows, "train/loss")
    left.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="per step")
    if len(losses) >= 20:
        width = max(len(losses) // 25, 5)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        left.plot(steps[width - 1 :], smooth, color="#1f4e8c", label=f"mean of {width}")
    left.set(xlabel="optimiser step", ylabel="training loss (nats per scored token)")
    left.legend(frameon=False)

    names = sorted({key for row in rows for key in row if key.endswith("/exact_match")})
    for name in names:
        steps, matches = _series(rows, name)
        if name.count("/") == 2:
            right.plot(steps, 100 * matches, marker="o", markersize=3, label=name.split("/")[1])
    right.set(xlabel="optimiser step", ylabel="held-out exact match (%)", ylim=(0, 100))
    if right.lines:
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def sample_sheet(answered: Sequence[Answered], target: Path, columns: int = 4) -> None:
    """Draw pictures with question, answer and prediction.

    Args:
        answered: what to show, in order.
        target: PNG to write.
        columns: pictures in a row.
    """
    rows = -(-len(answered) // columns)
    figure = Figure(figsize=(2.9 * columns, 3.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, item in zip(grid.flat, answered, strict=False):
        axes.imshow(item.picture, interpolation="nearest")
        right = item.prediction.strip() == item.answer.strip()
        question = textwrap.fill(item.question.replace("\n", " "), 34)
        axes.set_title(question, fontsize=9, loc="left")
        prediction = textwrap.fill(f"says: {item.prediction.strip()}", 36)
        axes.text(
            0, -0.04, prediction, transform=axes.transAxes, va="top",
            fontsize=9, color=GOOD if right else BAD,
        )  # fmt: skip
        note = f"{item.source}" if right else f"{item.source}; answer: {item.answer}"
        axes.text(
            0, -0.15 - 0.07 * prediction.count("\n"), textwrap.fill(note, 42),
            transform=axes.transAxes, va="top", fontsize=7, color=MUTED,
        )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _series(rows: list[dict[str, float]], key: str) -> tuple[NDArray, NDArray]:
    found = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps), np.array(values)
