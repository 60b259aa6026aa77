"""What an evaluation found, on disk: numbers with intervals, the spec that names them, every item."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit.checkpoint.run_folder import write_atomically
from vlmkit.errors import UserError
from vlmkit.evaluation.benchmark import Item, ItemScore
from vlmkit.evaluation.metrics.base import MetricResult
from vlmkit.evaluation.metrics.needle import Grid
from vlmkit.evaluation.spec import EvalSpec

RESULT, ITEMS, HEAT_MAP = "result.json", "items.jsonl", "heat_map.png"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over a benchmark or a part of it.

    Attributes:
        value: of the metric.
        low: end of the 95 % bootstrap interval.
        high: its other end.
        n: questions.
        parse_failures: share of answers from which nothing could be read; they score as wrong.
        parts: further values of the metric by name, each with the ends of its interval.
    """

    value: float
    low: float
    high: float
    n: int
    parse_failures: float
    parts: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: MetricResult) -> Score:
        """What a metric found."""
        parts = {name: (p.value, p.low, p.high) for name, p in found.parts.items()}
        return cls(
            value=found.value,
            low=found.low,
            high=found.high,
            n=found.n,
            parse_failures=found.parse_failure_rate,
            parts=parts,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Score:
        """Read back; JSON knows no tuples."""
        parts = {name: tuple(part) for name, part in values["parts"].items()}
        return cls(**{**values, "parts": parts})


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Accuracy by length of the context and depth of the needle.

    Attributes:
        lengths: of rows.
        depths: of columns, 0 to 1.
        accuracy: (lengths, depths); None where nothing was asked.
        counts: (lengths, depths) questions.
    """

    lengths: Sequence[float]
    depths: Sequence[float]
    accuracy: Sequence[Sequence[float | None]]
    counts: Sequence[Sequence[int]]

    @classmethod
    def of(cls, grid: Grid) -> HeatMap:
        """What a metric of needles counted."""
        shown = [
            [value if value == value else None for value in row] for row in grid.accuracy.tolist()
        ]
        counts = grid.counts.astype(int).tolist()
        return cls(
            lengths=list(grid.lengths), depths=list(grid.depths), accuracy=shown, counts=counts
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All of one benchmark.

    Attributes:
        spec: what the scores depend on.
        model: in words.
        primary: the metric that stands for the benchmark.
        scores: by metric.
        higher_is_better: of the primary metric.
        by_category: the primary metric by category and its value: `{"subject": {"Art": ...}}`.
        heat_map: of the primary metric, where it is one of needles.
        chance: what guessing reaches in the primary metric.
        unanswered: questions without an answer, by reason.
        cut_off: share of answers that reached the longest allowed length.
        prompt_tokens: of all questions.
        new_tokens: of all answers.
        seconds: of answering, this time and before.
        published: what others have reported, in the unit of the primary metric, by edition and size.
        published_source: where.
        about: one line.
        date: ISO 8601, UTC.
    """

    spec: EvalSpec
    model: str
    primary: str
    scores: Mapping[str, Score]
    higher_is_better: bool = True
    by_category: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    heat_map: HeatMap | None = None
    chance: float | None = None
    unanswered: Mapping[str, int] = field(default_factory=dict)
    cut_off: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published_source: str = ""
    about: str = ""
    date: str = ""

    @property
    def score(self) -> Score:
        """Of the primary metric."""
        return self.scores[self.primary]

    def as_json(self) -> dict[str, Any]:
        """Plain."""
        return {**asdict(self), "spec": self.spec.as_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BenchmarkResult:
        """What `as_json` gave."""
        by_category = {
            name: {value: Score.from_json(score) for value, score in scores.items()}
            for name, scores in values["by_category"].items()
        }
        heat_map = values.get("heat_map")
        return cls(**{
            **values,
            "heat_map": HeatMap(**heat_map) if heat_map else None,
            "spec": EvalSpec.from_json(values["spec"]),
            "scores": {n: Score.from_json(score) for n, score in values["scores"].items()},
            "by_category": by_category,
        })  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write `result.json`."""
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        write_atomically(folder / RESULT, text.encode())

    @classmethod
    def load(cls, folder: Path) -> BenchmarkResult:
        """Read `result.json`.

        Raises:
            UserError: there is none, or it is no result.
        """
        path = folder / RESULT
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no {RESULT}: has it been evaluated?") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no result of this version: {error!r}") from error


def save_items(items: list[Item], folder: Path) -> None:
    """Write `items.jsonl`, one question a line."""
    lines = (json.dumps(asdict(item), ensure_ascii=True, default=str) + "\n" for item in items)
    write_atomically(folder / ITEMS, "".join(lines).encode())


def load_items(folder: Path) -> Iterator[Item]:
    """Read `items.jsonl`.

    Raises:
        UserError: there is none.
    """
    path = folder / ITEMS
    if not path.is_file():
        raise UserError(f"{folder} holds no {ITEMS}: has it been evaluated?")
    for line in path.read_text().split("\n"):
        if line:
            row = json.loads(line)
            scores = {name: ItemScore(**score) for name, score in row.pop("scores").items()}
            texts, finish = tuple(row.pop("texts")), tuple(row.pop("finish"))
            yield Item(**row, scores=scores, texts=texts, finish=finish)


def results_in(folder: Path) -> dict[str, Path]:
    """Folders of results below a folder, by name of the benchmark; itself where it is one.

    Raises:
        UserError: there are none, or two of one benchmark.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(RESULT)):
        name = BenchmarkResult.load(path.parent).spec.benchmark
        if name in found:
            raise UserError(
                f"{folder} holds two results of {name} ({found[name].name}, {path.parent.name}): name one "
                "of these folders"
            )
        found[name] = path.parent
    if not found:
        raise UserError(f"{folder} holds no results of python -m vlmkit.evaluate")
    return found
