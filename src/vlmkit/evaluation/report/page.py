"""Results -> `report.html` and `report.json`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.checkpoint.run_folder import write_atomically
from vlmkit.evaluation.benchmark import Item
from vlmkit.evaluation.report.forest import Axis, Mark
from vlmkit.evaluation.result import HEAT_MAP, BenchmarkResult, load_items
from vlmkit.evaluation.thumbnails import Outcome, Shown, load_pictures
from vlmkit.inspection.self_contained import rendered, strict

PAGE, DATA = "report.html", "report.json"
MOST_ITEMS = 300
"""Questions of a benchmark on the page; all of them stand in its `items.jsonl`."""
MOST_CHARS = 4_000
"""Of a text on the page."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Section:
    """A benchmark on the page.

    Attributes:
        result: what was found.
        folder: where it stands.
        items: some of its questions.
        pictures: of some of those.
    """

    result: BenchmarkResult
    folder: Path
    items: Sequence[Item]
    pictures: Mapping[str, Shown]

    @classmethod
    def read(cls, folder: Path) -> Section:
        """A result on disk; of many questions those with pictures, and others at random.

        Raises:
            UserError: the folder holds no result.
        """
        result, pictures = BenchmarkResult.load(folder), load_pictures(folder)
        items = list(load_items(folder))
        order = np.random.default_rng(0).permutation(len(items)).tolist()
        order.sort(key=lambda i: items[i].key not in pictures)
        kept = [items[i] for i in sorted(order[:MOST_ITEMS])]
        return cls(result=result, folder=folder, items=kept, pictures=pictures)

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return self.result.spec.benchmark

    @property
    def spec(self) -> str:
        """In full, to be read."""
        return json.dumps(self.result.spec.as_json(), indent=2, ensure_ascii=False)

    @property
    def heat_map(self) -> str | None:
        """As an address that a page can hold."""
        path = self.folder / HEAT_MAP
        return address(path, "png") if path.is_file() else None

    def rows(self) -> list[dict[str, Any]]:
        """Questions for the script of the page, plain."""
        return [self._row(item) for item in self.items]

    def _row(self, item: Item) -> dict[str, Any]:
        result = self.result
        shown = self.pictures.get(item.key, Shown())
        found = item.scores[result.primary]
        return {
            "key": item.key,
            "outcome": str(Outcome.of(item, result.primary, result.higher_is_better)),
            "score": strict(found.score),
            "scores": {name: strict(score.score) for name, score in item.scores.items()},
            "question": cut(item.question),
            "target": cut(readable(item.target)),
            "texts": [cut(text) for text in item.texts],
            "finish": list(item.finish),
            "error": item.error,
            "categories": dict(item.categories),
            "pictures": [
                [address(self.folder / name, "webp"), caption]
                for name, caption in zip(shown.files, shown.captions, strict=True)
                if (self.folder / name).is_file()
            ],
            "note": shown.note,
        }


def report_page(sections: Sequence[Section]) -> str:
    """The page: one HTML file that needs nothing else.

    Args:
        sections: of one model.
    """
    results = [section.result for section in sections]
    others = {section.name: _published(section.result) for section in sections}
    axis = Axis.covering(
        value
        for result in results
        for value in (
            *(result.score.value, result.score.low, result.score.high, result.chance),
            *(number for number, _ in others[result.spec.benchmark]),
        )
    )
    marks = {
        section.name: Mark.on(
            axis,
            section.result.score.value,
            section.result.score.low,
            section.result.score.high,
            others=others[section.name],
            line=section.result.chance,
        )
        for section in sections
    }
    return rendered(
        _FOLDER,
        "report",
        style="report.css",
        data=[{"name": section.name, "items": section.rows()} for section in sections],
        sections=sections,
        axis=axis,
        marks=marks,
        outcomes=list(Outcome),
    )


def save_report(folders: Sequence[Path], target: Path) -> Path:
    """Write `report.html` and `report.json`.

    Args:
        folders: of results of one model.
        target: folder to write to.

    Returns:
        The page.

    Raises:
        UserError: a folder holds no result.
    """
    sections = [Section.read(folder) for folder in folders]
    plain = [{"folder": s.folder.name, **s.result.as_json()} for s in sections]
    text = json.dumps(strict({"benchmarks": plain}), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(target / DATA, text.encode("utf-8", "surrogatepass"))
    page = report_page(sections).encode("utf-8", "replace")
    write_atomically(target / PAGE, page)
    return target / PAGE


def address(path: Path, kind: str) -> str:
    """A picture as `data:image/...`."""
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def cut(text: str) -> str:
    """A text that is not too long for a page; says how much is left out."""
    left_out = len(text) - MOST_CHARS
    return text if left_out <= 0 else f"{text[:MOST_CHARS]} … and {left_out:,} characters more"


def readable(target: Any) -> str:
    """A target in words: itself, or its JSON."""
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)


def _published(result: BenchmarkResult) -> list[tuple[float, str]]:
    return [
        (value, f"{size} {edition}: {value:.3f}")
        for edition, by_size in result.published.items()
        for size, value in by_size.items()
    ]
