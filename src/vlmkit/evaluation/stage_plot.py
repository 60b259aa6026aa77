"""What each stage of a recipe did, on the same held-out samples throughout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Scores = Mapping[str, float]


def stage_plot(
    stages: Mapping[str, Mapping[str, Any]], panels: Mapping[str, Any], target: Path
) -> None:
    """Draw a panel per question, with the score before the first stage and after each.

    Args:
        stages: what each stage's `results.json` holds: `before` and `after`, scores by name.
        panels: title -> `lines`, which is label -> name of a score; `share`: whether scores are shares of
            one; `chance`, which is label -> score of guessing.
        target: PNG to write.
    """
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    points: list[tuple[str, Scores]] = []
    for name, result in stages.items():
        if not points:
            points.append(("start", result["before"]))
        points.append((name.replace("_", "\n", 1), result["after"]))
    for panel, (title, content) in zip(axes, panels.items(), strict=True):
        for label, key in content["lines"].items():
            known = [(i, scores[key]) for i, (_, scores) in enumerate(points) if key in scores]
            (line,) = panel.plot(*zip(*known, strict=True), marker="o", markersize=4, label=label)
            if (chance := content.get("chance", {}).get(label)) is not None:
                panel.axhline(chance, color=line.get_color(), linewidth=0.8, linestyle=":")
        if content.get("share"):
            panel.yaxis.set_major_formatter(PercentFormatter(1.0))
            panel.set_ylim(-0.02, 1.02)
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xticks(range(len(points)), [name for name, _ in points], fontsize=8)
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
