"""A comparison -> `comparison.html` and `comparison.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vlmkit.checkpoint.run_folder import write_atomically
from vlmkit.evaluation.comparison import Row, summary
from vlmkit.evaluation.report.forest import Axis, Mark
from vlmkit.inspection.self_contained import rendered, strict

PAGE, DATA = "comparison.html", "comparison.json"

_FOLDER = Path(__file__).parent


def comparison_page(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """The page: one HTML file that needs nothing else.

    Args:
        rows: of benchmarks.
        names: of the two that are compared.
    """
    estimates = [row.found.difference for row in rows]
    axis = Axis.covering((value for found in estimates for value in found), always=(0,))
    marks = [Mark.on(axis, found.value, found.low, found.high, line=0) for found in estimates]
    return rendered(
        _FOLDER,
        "comparison",
        style="report.css",
        rows=list(zip(rows, marks, strict=True)),
        axis=axis,
        names=names,
        summary=summary(rows),
    )


def save_comparison(rows: Sequence[Row], names: tuple[str, str], target: Path) -> Path:
    """Write `comparison.html` and `comparison.json`.

    Args:
        rows: of benchmarks.
        names: of the two that are compared.
        target: folder to write to.

    Returns:
        The page.
    """
    target.mkdir(parents=True, exist_ok=True)
    plain = {"a": names[0], "b": names[1], "benchmarks": [row.as_json() for row in rows]}
    text = json.dumps(strict(plain), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(target / DATA, text.encode("utf-8", "surrogatepass"))
    page = comparison_page(rows, names)
    write_atomically(target / PAGE, page.encode("utf-8", "replace"))
    return target / PAGE
