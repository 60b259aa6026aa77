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

    Stages that were not scored on any of it (the encoder's own) are left out. Dotted lines are chance.

    Args:
        stages: what each stage's `results.json` holds: `before` and `after`, scores by name.
        panels: title -> `lines`, which is label -> name of a score, and `unit`.
        target: PNG to write.
    """
    keys = {key for content in panels.values() for key in content["lines"].values()}
    scored = {name: result for name, result in stages.items() if keys & set(result["after"])}
    points: list[tuple[str, Scores]] = []
    for name, result in scored.items():
        if not points:
            points.append(("start", result["before"]))
        points.append((name.replace("_", "\n", 1), result["after"]))
    chance = {
        f"{source}/exact_match": row["chance"]
        for result in scored.values()
        for source, row in result.get("exact_match", {}).items()
    }
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (title, content) in zip(axes, panels.items(), strict=True):
        for label, key in content["lines"].items():
            known = [(i, scores[key]) for i, (_, scores) in enumerate(points) if key in scores]
            (line,) = panel.plot(*zip(*known, strict=True), marker="o", markersize=4, label=label)
            if key in chance:
                panel.axhline(chance[key], color=line.get_color(), linewidth=0.8, linestyle=":")
        if any(key in chance for key in content["lines"].values()):
            panel.yaxis.set_major_formatter(PercentFormatter(1.0))
            panel.set_ylim(-0.02, 1.02)
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_ylabel(content["unit"], fontsize=9)
        panel.set_xticks(range(len(points)), [name for name, _ in points], fontsize=8)
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
