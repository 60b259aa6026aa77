"""Detection over several sets with labels of their own, such as the thirteen of ODinW-13."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmkit.data.geometry.shapes import Grounding
from vlmkit.evaluation.metrics.detection import DetectionAP, Found


@dataclass(frozen=True)
class OfSet:
    """The labelled boxes of a picture, and the set that it belongs to."""

    set_name: str
    items: tuple[Grounding, ...]

    def __iter__(self) -> Iterator[Grounding]:
        """With labels as they are told apart from those of other sets."""
        return (Grounding(item.shape, f"{self.set_name}/{item.label}") for item in self.items)


class DetectionOverSets(DetectionAP):
    """`map` is the mean over sets of each set's mAP; `map/…` are those. Targets are `OfSet`s.

    A label that another set has counts for nothing, and a box without one takes its set's only label.

    Args:
        sets: labels of each.
    """

    def __init__(self, sets: Mapping[str, Sequence[str]], **options: Any) -> None:
        super().__init__([f"{name}/{label}" for name in sets for label in sets[name]], **options)
        self.sets = {name: tuple(labels) for name, labels in sets.items()}

    def scored(self, prediction: str, target: OfSet) -> tuple[list[float], bool]:  # type: ignore[override]
        """See `DetectionAP.scored`."""
        if target.set_name not in self.sets:
            raise ValueError(f"there is no set {target.set_name!r}, only {list(self.sets)}")
        return super().scored(prediction, target)  # type: ignore[arg-type]

    def read(self, text: str, target: OfSet) -> list[Found] | None:  # type: ignore[override]
        """See `DetectionAP.read`."""
        found = super().read(text, list(target))
        labels = self.sets[target.set_name]
        only = labels[0] if len(labels) == 1 else ""
        return found and [
            (box, f"{target.set_name}/{label or only}", score) for box, label, score in found
        ]

    def _values(self, groups: list[tuple[Any, Any, Any]], weights: np.ndarray) -> dict[str, float]:
        found = super()._values(groups, weights)
        by_set = {}
        for name, labels in self.sets.items():
            values = np.array([found[f"ap/{name}/{label}"] for label in labels])
            known = values[np.isfinite(values)]
            by_set[f"map/{name}"] = float(known.mean()) if len(known) else float("nan")
        known = np.array([value for value in by_set.values() if np.isfinite(value)])
        return {"map": float(known.mean()) if len(known) else float("nan"), **by_set}
