from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from vlmkit.data.geometry.shapes import Box, Box3D, Grounding, grounding_text
from vlmkit.data.geometry.spaces import Relative1000
from vlmkit.evaluation.metrics.detection import Detection3DAP, DetectionAP
from vlmkit.evaluation.oriented_boxes import iou_3d, rotation

LABELS = ["cat", "Traffic-Light", "dog"]
SPACE = Relative1000()


def picture(rng, num: int) -> tuple[np.ndarray, np.ndarray]:
    corner, size = rng.uniform(0, 700, (num, 2)), rng.uniform(50, 300, (num, 2))
    return np.concatenate([corner, corner + size], axis=1).round(), rng.integers(0, 3, num)


def texts(boxes, labels, scores) -> str:
    return json.dumps(
        [
            {
                "bbox_2d": list(map(int, box)),
                "label": LABELS[label],
                "score": round(float(score), 3),
            }
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
    )


@pytest.mark.parametrize("written_scores", [True, False])
def test_map_is_that_of_pycocotools(written_scores):
    rng = np.random.default_rng(0)
    ours = DetectionAP(LABELS, written_scores=written_scores, num_resamples=20)
    theirs = MeanAveragePrecision(class_metrics=True, backend="pycocotools")
    for key in range(30):
        truth, labels = picture(rng, int(rng.integers(0, 7)))
        near = np.clip(truth + rng.normal(0, 12, truth.shape), 0, 1000).round()
        near = np.unique(near[near[:, 2] > near[:, 0]], axis=0)
        other, _ = picture(rng, 2)
        found = np.concatenate([near, other])
        found_labels = rng.permuted(np.concatenate([labels[: len(near)], [0, 1]]))
        if len(near) == len(truth) and len(near) > 1:
            found_labels[: len(near)] = labels
        scores = rng.uniform(0, 1, len(found)).round(3)
        target = [Grounding(Box(*b, SPACE), LABELS[c]) for b, c in zip(truth, labels, strict=True)]
        ours.update(texts(found, found_labels, scores), target, key)
        given = scores if written_scores else np.ones(len(found))
        theirs.update(
            [
                {
                    "boxes": torch.tensor(found),
                    "scores": torch.tensor(given),
                    "labels": torch.tensor(found_labels),
                }
            ],
            [{"boxes": torch.tensor(truth).reshape(-1, 4), "labels": torch.tensor(labels)}],
        )
    result, expected = ours.compute(), theirs.compute()
    assert 0.05 < result.value < 0.95
    assert result.value == pytest.approx(float(expected["map"]), abs=1e-6)  # measured 2e-8
    assert result.parts["map@0.5"].value == pytest.approx(float(expected["map_50"]), abs=1e-6)
    assert result.parts["map@0.75"].value == pytest.approx(float(expected["map_75"]), abs=1e-6)
    by_label = [result.parts[f"ap/{name}"].value for name in LABELS]
    assert by_label == pytest.approx(expected["map_per_class"].tolist(), abs=1e-6)
    assert result.low < result.value < result.high


def test_labels_repetitions_and_texts_without_boxes():
    target = [Grounding(Box(0, 0, 100, 100, SPACE), "Traffic-Light")]
    hit = {"bbox_2d": [0, 0, 100, 100], "label": "traffic light"}
    metric = DetectionAP(LABELS, aliases={"kitten": "cat"})
    metric.update(json.dumps([hit, hit, {**hit, "label": "zebra"}]), target, 1)
    assert metric.compute().value == pytest.approx(1)
    metric.update("there is none", target, 2)
    result = metric.compute()
    assert result.value == pytest.approx(51 / 101)  # recall stops at a half
    assert result.parse_failure_rate == 0.5
    metric.update("[]", [], 3)
    assert list(metric.per_sample().scores) == [1, 0, 1]
    with pytest.raises(ValueError, match="'cow', which is not declared"):
        metric.update("[]", [Grounding(Box(0, 0, 1, 1, SPACE), "cow")], 4)


def test_a_picture_that_comes_twice_counts_once():
    target = [Grounding(Box(0, 0, 100, 100, SPACE), "cat")]
    metric = DetectionAP(LABELS)
    for _ in range(2):
        metric.update('[{"bbox_2d": [0, 0, 100, 100], "label": "cat"}]', target, 1)
        metric.update('[{"bbox_2d": [0, 0, 100, 10], "label": "cat"}]', target, 2)
    result = metric.compute()
    assert (result.n, result.value) == (2, pytest.approx(51 / 101))


def monte_carlo_iou(a: Box3D, b: Box3D, rng, samples: int = 400_000) -> float:
    points = (rng.random((samples, 3)) - 0.5) * a.size_m @ rotation(a).T + a.center_m
    local = (points - b.center_m) @ rotation(b)
    share = (np.abs(local) <= np.array(b.size_m) / 2).all(axis=1).mean()
    common = share * math.prod(a.size_m)
    return common / (math.prod(a.size_m) + math.prod(b.size_m) - common)


def test_overlap_in_space_is_that_of_random_points():
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(25):
        a, b = (
            Box3D(
                tuple(rng.normal(0, 0.3, 3)), tuple(rng.uniform(0.5, 2, 3)), *rng.uniform(-3, 3, 3)
            )
            for _ in "ab"
        )
        seen.append(iou_3d(a, b))
        assert seen[-1] == pytest.approx(monte_carlo_iou(a, b, rng), abs=4e-3)  # measured 1.2e-3
        assert seen[-1] == pytest.approx(iou_3d(b, a), abs=1e-9)
    assert max(seen) > 0.3


def test_overlap_in_space_by_hand():
    cube = Box3D((0, 0, 0), (1, 1, 1))
    turned = Box3D((0, 0, 0), (1, 1, 1), yaw_rad=math.pi / 4)
    octagon = 2 * (math.sqrt(2) - 1)
    assert iou_3d(cube, cube) == pytest.approx(1)
    assert iou_3d(cube, turned) == pytest.approx(octagon / (2 - octagon))
    assert iou_3d(cube, Box3D((0.5, 0, 0), (1, 1, 1))) == pytest.approx(1 / 3)
    assert iou_3d(cube, Box3D((1, 0, 0), (1, 1, 1))) == 0  # they touch
    assert iou_3d(cube, Box3D((0, 0, 0), (1, 1, 0))) == 0
    assert iou_3d(cube, Box3D((0, 0, 0), (1e200, 1e200, 1e200))) == 0
    small = Box3D((1e3, 1e3, 1e3), (1e-3, 1e-3, 1e-3), 1, 2, 3)
    assert iou_3d(small, small) == pytest.approx(1, abs=1e-6)


def test_mean_average_precision_in_space():
    truth = Box3D((0, 0, 2), (1, 1, 1), yaw_rad=0.3)
    metric = Detection3DAP(["chair", "table"])
    near = Box3D((0.3, 0, 2), (1, 1, 1), yaw_rad=0.3)
    metric.update(grounding_text([Grounding(near, "Chair")]), [Grounding(truth, "chair")], 1)
    metric.update(
        '[{"bbox_3d": [0, 0, 2, 1, 1, -1, 0, 0, 0], "label": "chair"}]',
        [Grounding(truth, "chair")],
        2,
    )
    metric.update("no", [Grounding(truth, "table")], 3)
    result = metric.compute()
    assert result.parts["ap/chair"].value == pytest.approx(51 / 101)
    assert result.parts["ap/table"].value == 0
    assert result.value == result.parts["map@0.15"].value == pytest.approx(51 / 202)
    half_turns = Detection3DAP(["chair"], written_angle_unit_rad=math.pi)
    text = json.dumps({"bbox_3d": [0, 0, 2, 1, 1, 1, 0, 0, 0.3 / math.pi], "label": "chair"})
    half_turns.update(text, [Grounding(truth, "chair")], 1)
    assert half_turns.compute().value == pytest.approx(1)
