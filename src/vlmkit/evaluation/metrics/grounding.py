"""Where things are: referring boxes, points, counts, and stretches of videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlmkit.data.geometry.shapes import Box, Point, TimeSpan
from vlmkit.data.geometry.spaces import Relative1000, Space
from vlmkit.evaluation.extract.shapes import POINT_KEYS, first_box, first_point, points
from vlmkit.evaluation.extract.short_answer import count
from vlmkit.evaluation.extract.times import time_span
from vlmkit.evaluation.metrics.base import ScoredMetric, Values, ratio


def relative_1000(space: Space) -> Space:
    """What Qwen3-VL counts in: 0 to 1000 over the view that the truth is given on."""
    return Relative1000(on=space.on)


def as_the_truth(space: Space) -> Space:
    """For models that write the pixels which the truth is given in."""
    return space


SpaceOf = Callable[[Space], Space]


class ReferringBox(ScoredMetric):
    """RefCOCO: is the first box the right one? Targets are `Box`es.

    `acc` at an IoU of at least `threshold`, `miou`, and `center`: the box's middle lies in the truth.
    Later boxes and other readings of the numbers are not tried.

    Args:
        threshold: least IoU of a hit.
        written_in: space of the text, from the space of the truth.
    """

    columns = ("hit", "iou", "center")

    def __init__(
        self, threshold: float = 0.5, written_in: SpaceOf = relative_1000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.threshold = threshold
        self.written_in = written_in

    def score(self, text: str, target: Box) -> list[float] | None:
        """See the class."""
        box = first_box(text, self.written_in(target.space))
        if box is None:
            return None
        box = box.to(target.space)
        iou = box.iou(target)
        center = Point((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, target.space)
        return [float(iou >= self.threshold), iou, float(_inside(center, target))]

    def values(self, sums: np.ndarray) -> Values:
        """`acc`, `miou`, `center`."""
        names = ("acc", "miou", "center")
        return {name: ratio(sums[..., i], sums[..., -1]) for i, name in enumerate(names)}


class Mask(NamedTuple):
    """An area of a picture.

    Attributes:
        inside: (height, width) bool.
        space: a grid over the whole of it; what it counts does not matter.
    """

    inside: np.ndarray
    space: Space


class Pointing(ScoredMetric):
    """Does the first point lie on the thing? Targets are a `Box` or a `Mask`.

    Args:
        written_in: space of the text, from the space of the truth.
        keys: of JSON objects that hold a point; `CLICK_KEYS` for tool calls.
    """

    def __init__(
        self,
        written_in: SpaceOf = relative_1000,
        keys: Sequence[str] = POINT_KEYS,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.written_in = written_in
        self.keys_of_points = tuple(keys)

    def score(self, text: str, target: Box | Mask) -> list[float] | None:
        """See the class."""
        point = first_point(text, self.written_in(target.space), self.keys_of_points)
        return None if point is None else [float(_inside(point, target))]


class PointShare(Pointing):
    """RefSpatial and Where2Place: share of all points that lie on the thing."""

    def score(self, text: str, target: Box | Mask) -> list[float] | None:
        """See the class."""
        found = points(text, self.written_in(target.space), self.keys_of_points)
        return None if found is None else [float(np.mean([_inside(p, target) for p in found]))]


class Counting(ScoredMetric):
    """CountBench: `exact`, and `mae`, the mean absolute error. Targets are whole numbers.

    An answer without a number counts as 0 things.

    Args:
        extract: the number of an answer; `count_shapes` counts the boxes or points of a JSON text.
    """

    columns = ("correct", "error")

    def __init__(self, extract: Callable[[str], int | None] = count, **options: Any) -> None:
        super().__init__(**options)
        self.extract = extract

    def score(self, text: str, target: int) -> list[float] | None:
        """See the class."""
        found = self.extract(text)
        return None if found is None else [float(found == target), float(abs(found - target))]

    def failure(self, target: int) -> list[float]:
        """Wrong by all there is."""
        return [0.0, float(abs(target))]

    def values(self, sums: np.ndarray) -> Values:
        """`exact` and `mae`."""
        return {
            "exact": ratio(sums[..., 0], sums[..., 2]),
            "mae": ratio(sums[..., 1], sums[..., 2]),
        }


class TemporalGrounding(ScoredMetric):
    """Charades-STA: `miou` of the first stretch, and `r1@…` at least IoUs. Targets are `TimeSpan`s.

    Args:
        thresholds: of IoU.
    """

    columns = ("iou",)

    def __init__(self, thresholds: Sequence[float] = (0.3, 0.5, 0.7), **options: Any) -> None:
        super().__init__(**options)
        self.thresholds = tuple(thresholds)

    def score(self, text: str, target: TimeSpan) -> list[float] | None:
        """See the class."""
        span = time_span(text)
        return None if span is None else [span_iou(span, target)]

    def sums(self, table: Any) -> np.ndarray:
        """IoU, hits at each threshold, count."""
        ious = table.rows[:, :1]
        hits = (ious >= np.array(self.thresholds)).astype(float)
        return super().sums(table._replace(rows=np.concatenate([ious, hits], axis=1)))

    def values(self, sums: np.ndarray) -> Values:
        """`miou`, then recalls at 1."""
        names = ("miou", *(f"r1@{threshold:g}" for threshold in self.thresholds))
        return {name: ratio(sums[..., i], sums[..., -1]) for i, name in enumerate(names)}


def span_iou(a: TimeSpan, b: TimeSpan) -> float:
    """Common time over the time of both; 0 for two instants."""
    common = max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s))
    union = (a.end_s - a.start_s) + (b.end_s - b.start_s) - common
    return common / union if union else 0.0


def _inside(point: Point, area: Box | Mask) -> bool:
    point = point.to(area.space)
    if isinstance(area, Box):
        return area.x1 <= point.x <= area.x2 and area.y1 <= point.y <= area.y2
    height, width = area.inside.shape
    across, down = point.x / area.space.width, point.y / area.space.height
    if not (0 <= across <= 1 and 0 <= down <= 1):
        return False
    row, column = min(int(down * height), height - 1), min(int(across * width), width - 1)
    return bool(area.inside[row, column])
