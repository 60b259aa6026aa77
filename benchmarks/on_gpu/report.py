"""Findings as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.on_gpu.bench import shown
from benchmarks.on_gpu.cases import CASES


def page(about: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: where and with what it ran, the goals, then a table for each case."""
    lines = ["# GPU benchmark", ""]
    if about["toy"]:
        lines += ["**A toy run: sizes are tiny, and figures mean nothing.**", ""]
    lines += ["```", about["command"], "```", ""]
    lines += _table([{"": key, " ": value} for key, value in about.items() if key != "command"])
    goals = [(name, goal) for name, found in results.items() for goal in found.get("goals", [])]
    if goals:
        lines += ["## Goals", ""]
        lines += _table(
            [
                {
                    "case": name, "what": goal["what"], "goal": f"at least {goal['least']:g}",
                    "found": goal["value"], "reached": "yes" if goal["reached"] else "no",
                }
                for name, goal in goals
            ]
        )  # fmt: skip
    for name, found in results.items():
        lines += [f"## {name}: {CASES[name].what}", ""]
        took = f", {found['seconds']:.0f} s" if "seconds" in found else ""
        lines += [f"{found['status']}{took}", ""]
        lines += _table(found.get("rows", []))
        lines += [f"- {note}" for note in found.get("notes", [])]
        lines += [f"- **{error['what']}**: {error['error']}" for error in found.get("errors", [])]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [shown(row.get(column, "")).replace("|", "\\|") for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]
