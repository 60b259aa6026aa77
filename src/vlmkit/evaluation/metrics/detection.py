"""Mean average precision of boxes, in pictures and in space."""

from __future__ import annotations

import unicodedata
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmkit.data.geometry.shapes import Box, Box3D, Grounding
from vlmkit.data.geometry.spaces import Relative1000
from vlmkit.errors import DataError
from vlmkit.evaluation.extract.final_answer import final_answer
from vlmkit.evaluation.extract.shapes import BOX_3D_KEYS, boxes, written_shapes
from vlmkit.evaluation.metrics.base import Estimate, ScoredMetric, Table, percentiles
from vlmkit.evaluation.metrics.grounding import SpaceOf, relative_1000
from vlmkit.evaluation.oriented_boxes import iou_3d

Found = tuple[Any, str, float]
"""A shape, its label, its confidence."""

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_RECALLS = np.linspace(0, 1, 101)


class AveragePrecision(ScoredMetric):
    """Mean over labels and IoU thresholds of COCO's interpolated average precision.

    Targets are the `Grounding`s of a picture. `map` comes first, then `map@…` for each threshold and
    `ap/…` for each label. Matching is COCO's: within a picture and label, by confidence, each to the
    free truth that it overlaps most. With equal confidences the order is that of keys, then of the
    text, as in pycocotools. Areas, crowds and limits other than `most` are not distinguished.

    Labels count after normalisation; a box with an unknown label counts for nothing, as in COCO, and
    one without a label takes the only one there is. Boxes that are repeated word for word count once.
    A sample's own score is its F1 at the first threshold.

    Matches are kept, not boxes, since a bootstrap draws whole pictures and changes no match.

    Args:
        labels: all categories of the set.
        thresholds: of IoU.
        aliases: other words for labels, to labels.
        written_scores: take confidences from the text; else all are 1, as for published numbers.
        most: boxes per picture and label, the most confident first.
    """

    columns = ("f1", "instance")
    found_ids: list[Tensor]
    found_rows: list[Tensor]
    truth_rows: list[Tensor]

    def __init__(
        self,
        labels: Sequence[str],
        thresholds: Sequence[float] = COCO_THRESHOLDS,
        aliases: Mapping[str, str] | None = None,
        written_scores: bool = False,
        most: int = 100,
        num_resamples: int = 500,
        **options: Any,
    ) -> None:
        super().__init__(num_resamples=num_resamples, **options)
        self.labels = tuple(labels)
        self.thresholds = tuple(thresholds)
        self.written_scores = written_scores
        self.most = most
        known = {normal_label(label): i for i, label in enumerate(self.labels)}
        if len(known) < len(self.labels):
            raise ValueError(f"labels {list(labels)} are not distinct once they are normalised")
        others = {normal_label(a): known[normal_label(b)] for a, b in (aliases or {}).items()}
        self._index = {**others, **known}
        self.add_rows("found_ids", torch.zeros(0, 2, dtype=torch.int64))  # instance, label
        self.add_rows(
            "found_rows", torch.zeros(0, 1 + len(self.thresholds), dtype=torch.float64)
        )  # confidence, whether it is a hit at each threshold
        self.add_rows("truth_rows", torch.zeros(0, 3, dtype=torch.int64))  # instance, label, count

    @abstractmethod
    def read(self, text: str, target: Sequence[Grounding]) -> list[Found] | None:
        """What a text lists; None where it holds no list."""

    @abstractmethod
    def iou(self, found: Any, truth: Any) -> float:
        """0 to 1."""

    def score(self, text: str, target: Any) -> None:
        """Not used: a picture is more than a row, see `scored`."""
        raise NotImplementedError

    def scored(self, prediction: str, target: Sequence[Grounding]) -> tuple[list[float], bool]:
        """Match one picture, keep the matches, and give its F1."""
        text = final_answer(prediction) if len(prediction) <= self.max_chars else None
        said = self.read(text, target) if text is not None else None
        instance = uuid.uuid4().int % 2**53  # tells the rows of this update from a repetition's
        hits = num_found = num_truths = 0
        by_label: dict[int, tuple[list[Found], list[Any]]] = {}
        for entry in dict.fromkeys(said or []):
            label = self._label(entry[1])
            if label is not None:
                by_label.setdefault(label, ([], []))[0].append(entry)
        for item in target:
            label = self._label(item.label)
            if label is None:
                raise ValueError(f"the truth has the label {item.label!r}, which is not declared")
            by_label.setdefault(label, ([], []))[1].append(item.shape)
        for label, (entries, truths) in by_label.items():
            if not self.written_scores:
                entries = [(shape, name, 1.0) for shape, name, _ in entries]
            entries = sorted(entries, key=lambda entry: -entry[2])[: self.most]
            ious = np.array([[self.iou(e[0], truth) for truth in truths] for e in entries])
            flags = matches(ious.reshape(len(entries), len(truths)), self.thresholds)
            scores = np.array([entry[2] for entry in entries]).reshape(-1, 1)
            self.append("found_ids", [[instance, label]] * len(entries))
            self.append("found_rows", np.concatenate([scores, flags], axis=1).tolist())
            self.append("truth_rows", [[instance, label, len(truths)]])
            hits, num_found = hits + int(flags[:, 0].sum()), num_found + len(entries)
            num_truths += len(truths)
        both = num_found + num_truths
        f1 = 2 * hits / both if both else float(said is not None)
        return [f1, float(instance)], said is None

    def estimates(self, table: Table) -> dict[str, Estimate]:
        """See the class."""
        order = np.argsort(table.rows[:, 1])
        instances = table.rows[order, 1].astype(np.int64)
        ids, rows = self.gathered("found_ids"), self.gathered("found_rows")
        truths = self.gathered("truth_rows")
        sample, kept = _places(ids[:, 0], instances, order)
        labels, rows, sample = ids[kept, 1], rows[kept], sample[kept]
        truth_sample, kept = _places(truths[:, 0], instances, order)
        truths, truth_sample = truths[kept], truth_sample[kept]
        groups = []
        for label in range(len(self.labels)):
            of_label = labels == label
            by_rank = np.lexsort((sample[of_label], -rows[of_label, 0]))  # stable: text order stays
            counts = np.zeros(len(table.keys))
            ours = truths[:, 1] == label
            np.add.at(counts, truth_sample[ours], truths[ours, 2])
            groups.append((rows[of_label][by_rank, 1:], sample[of_label][by_rank], counts))
        point = self._values(groups, np.ones(len(table.keys)))
        clusters = table.clusters
        num_clusters = int(clusters.max()) + 1 if len(clusters) else 0
        if num_clusters < 2 or not self.num_resamples:
            return {name: Estimate(value, np.nan, np.nan) for name, value in point.items()}
        rng = np.random.default_rng(self.seed)
        share = np.full(num_clusters, 1 / num_clusters)
        drawn = [
            self._values(groups, rng.multinomial(num_clusters, share)[clusters].astype(float))
            for _ in range(self.num_resamples)
        ]
        return {
            name: percentiles(value, np.array([one[name] for one in drawn]))
            for name, value in point.items()
        }

    def _values(self, groups: list[tuple[Any, Any, Any]], weights: np.ndarray) -> dict[str, float]:
        """Values where each picture counts as often as its weight says."""
        found = np.array(
            [
                average_precisions(flags, weights[sample], float(counts @ weights))
                for flags, sample, counts in groups
            ]
        )  # (labels, thresholds), NaN for labels without truth
        by_threshold = {
            f"map@{threshold:g}": _mean(found[:, i]) for i, threshold in enumerate(self.thresholds)
        }
        by_label = {f"ap/{name}": _mean(found[i]) for i, name in enumerate(self.labels)}
        return {"map": _mean(found), **by_threshold, **by_label}

    def _label(self, written: str) -> int | None:
        if not written and len(self.labels) == 1:
            return 0
        return self._index.get(normal_label(written))


class DetectionAP(AveragePrecision):
    """COCO mAP of the boxes that a text lists as JSON (ODinW); targets are `Grounding`s of `Box`es.

    Args:
        labels: all categories of the set.
        written_in: space of the text, from the space of the truth.
    """

    def __init__(
        self, labels: Sequence[str], written_in: SpaceOf = relative_1000, **options: Any
    ) -> None:
        super().__init__(labels, **options)
        self.written_in = written_in

    def read(self, text: str, target: Sequence[Grounding]) -> list[Found] | None:
        """In the space of the truth; without any truth, overlaps do not matter."""
        spaces = [item.shape.space for item in target if isinstance(item.shape, Box)]
        if len(spaces) < len(target):
            raise ValueError("targets of detection are boxes with labels")
        if not spaces:
            return boxes(text, Relative1000())
        found = boxes(text, self.written_in(spaces[0]))
        return found and [(box.to(spaces[0]), label, score) for box, label, score in found]

    def iou(self, found: Box, truth: Box) -> float:
        """Of areas."""
        return found.iou(truth)


class Detection3DAP(AveragePrecision):
    """mAP of turned boxes in space at an IoU of 0.15 (ARKitScenes, Hypersim, SUN RGB-D in Omni3D).

    Targets are `Grounding`s of `Box3D`s in the coordinates that the text is asked for.

    Args:
        labels: all categories of the set.
        thresholds: of the IoU of volumes.
        written_angle_unit_rad: of angles in the text: 1 for radians, pi for half turns.
    """

    def __init__(
        self,
        labels: Sequence[str],
        thresholds: Sequence[float] = (0.15,),
        written_angle_unit_rad: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(labels, thresholds, **options)
        self.written_angle_unit_rad = written_angle_unit_rad

    def read(self, text: str, target: Sequence[Grounding]) -> list[Found] | None:
        """Boxes with nine finite numbers and sizes that are not negative."""
        written = written_shapes(text, BOX_3D_KEYS, 9)
        if written is None:
            return None
        found: list[Found] = []
        for entry in written:
            if entry.numbers is not None:
                x, y, z, a, b, c, *angles = entry.numbers
                roll, pitch, yaw = (angle * self.written_angle_unit_rad for angle in angles)
                try:
                    box = Box3D((x, y, z), (a, b, c), roll, pitch, yaw)
                except DataError:
                    continue
                found.append((box, entry.label, entry.score))
        return found

    def iou(self, found: Box3D, truth: Box3D) -> float:
        """Of volumes."""
        return iou_3d(found, truth)


def normal_label(label: str) -> str:
    """A label without case, hyphens, underscores and compatible forms."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    return " ".join(folded.replace("-", " ").replace("_", " ").split())


def matches(ious: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """(found, thresholds): 1 where a box, in order of confidence, takes a free truth.

    Args:
        ious: (found, truths).
        thresholds: least IoU of a match.
    """
    flags = np.zeros((len(ious), len(thresholds)))
    for column, threshold in enumerate(thresholds):
        free = np.ones(ious.shape[1], bool)
        for row, overlap in enumerate(ious):
            open_to = np.flatnonzero(free & (overlap >= min(threshold, 1 - 1e-10)))
            if len(open_to):  # of equal overlaps the last, as pycocotools takes it
                best = open_to[::-1][np.argmax(overlap[open_to][::-1])]
                free[best] = False
                flags[row, column] = 1
    return flags


def average_precisions(flags: np.ndarray, weights: np.ndarray, num_truths: float) -> np.ndarray:
    """(thresholds,) precision averaged over 101 recalls, NaN without truths.

    Args:
        flags: (found, thresholds) hits by falling confidence.
        weights: (found,) how often each counts.
        num_truths: weighted.
    """
    if not num_truths:
        return np.full(flags.shape[1], np.nan)
    hits = np.cumsum(flags * weights[:, None], axis=0)
    counted = np.cumsum(weights)[:, None]
    precision = np.divide(hits, counted, out=np.zeros_like(hits), where=counted > 0)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    padded = np.concatenate([precision, np.zeros((1, flags.shape[1]))])
    recall = hits / num_truths
    reached = [np.searchsorted(column, _RECALLS, side="left") for column in recall.T]
    return np.array([padded[at, i].mean() for i, at in enumerate(reached)])


def _places(
    instances: np.ndarray, known: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Row of the table of each instance, and whether it is there: repetitions are not."""
    if not len(known):
        return np.zeros(len(instances), int), np.zeros(len(instances), bool)
    at = np.searchsorted(known, instances).clip(max=len(known) - 1)
    return order[at], known[at] == instances


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
