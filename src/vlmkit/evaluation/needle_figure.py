"""Heat maps of needles in haystacks: how often one is found, by length of the context and depth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vlmkit.evaluation.result import HeatMap


def heat_map(found: HeatMap, title: str, chance: float | None, target: Path) -> None:
    """Draw one cell for each length and depth, with its accuracy and its number of questions.

    Args:
        found: what to draw.
        title: above it.
        chance: what guessing reaches; it stands under the map.
        target: PNG to write.
    """
    accuracy = np.array(
        [[math.nan if value is None else value for value in row] for row in found.accuracy]
    )
    across, down = len(found.lengths), len(found.depths)
    size = (max(1.8 + 0.78 * across, 4.2), max(1.7 + 0.5 * down, 2.6))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(accuracy.T, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(across), [f"{length:g}" for length in found.lengths])
    axes.set_yticks(range(down), [f"{depth:.0%}" for depth in found.depths])
    axes.set_xlabel("length of the context")
    axes.set_ylabel("depth of the needle")
    axes.set_title(title, loc="left", fontsize=10)
    for i in range(across):
        for j in range(down):
            count = int(found.counts[i][j])
            words = f"{accuracy[i, j]:.0%}\nof {count}" if count else "-"
            dark = count > 0 and not 0.15 < accuracy[i, j] < 0.85
            colour = "white" if dark else "#1d1b18"
            axes.text(i, j, words, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(shown, label="found", shrink=0.8)
    if chance is not None:
        figure.supxlabel(
            f"guessing reaches {chance:.1%}", fontsize=8, color="#78726a", x=0.01, ha="left"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
