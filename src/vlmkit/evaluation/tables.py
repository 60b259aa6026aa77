"""Results of evaluations as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from vlmkit.evaluation.comparison import Row
from vlmkit.evaluation.result import BenchmarkResult


def results_table(results: Sequence[BenchmarkResult]) -> Table:
    """One row per benchmark.

    Score with its interval, score of guessing, questions, share of answers from which nothing could be
    read, share of those that reached the longest allowed length.
    """
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("benchmark", no_wrap=True)
    for name in ("score", "95 %", "chance", "n", "unread", "cut off"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        score = result.score
        table.add_row(
            result.spec.benchmark,
            f"{score.value:.3f}",
            f"{score.low:.3f} - {score.high:.3f}",
            "-" if result.chance is None else f"{result.chance:.3f}",
            f"{score.n:,}",
            f"{score.parse_failures:.1%}",
            f"{result.cut_off:.1%}",
        )
    return table


def comparison_table(rows: Sequence[Row]) -> Table:
    """One row per benchmark: both values, their difference with its interval, p after Holm, the verdict.

    A star marks benchmarks whose protocol was not the same.
    """
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("benchmark", no_wrap=True)
    for name in ("a", "b", "b - a", "95 %", "p (Holm)", "McNemar", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in rows:
        found = row.found
        table.add_row(
            f"{row.benchmark} *" if row.differences else row.benchmark,
            f"{row.a:.3f}",
            f"{row.b:.3f}",
            f"{found.difference.value:+.3f}",
            f"{found.difference.low:+.3f} to {found.difference.high:+.3f}",
            f"{row.p_holm:.3f}",
            "-" if math.isnan(found.mcnemar_p) else f"{found.mcnemar_p:.3f}",
            f"{found.n:,}",
            row.verdict,
        )
    return table


def print_whole(table: Table) -> None:
    """Print a table with all that stands in it: a narrow terminal breaks lines, a file gets them whole."""
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table)
