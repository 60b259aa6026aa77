from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from vlmkit.data.geometry.shapes import Box, TimeSpan
from vlmkit.data.geometry.spaces import Relative1000, SourcePixels
from vlmkit.evaluation.extract.shapes import CLICK_KEYS, count_shapes
from vlmkit.evaluation.metrics.grounding import (
    Counting,
    Mask,
    Pointing,
    PointShare,
    ReferringBox,
    TemporalGrounding,
    as_the_truth,
)

PIXELS = SourcePixels(640, 480)


def said(*boxes) -> str:
    return json.dumps([{"bbox_2d": list(map(float, box))} for box in boxes])


def test_referring_boxes_are_those_of_torchvision():
    rng = np.random.default_rng(0)
    truth, guess = (np.sort(rng.uniform(0, 1000, (40, 2, 2)), axis=1).reshape(40, 4) for _ in "ab")
    guess[::2] = np.clip(truth[::2] + rng.normal(0, 40, (20, 4)), 0, 1000)
    guess = np.concatenate(
        [np.minimum(guess[:, :2], guess[:, 2:]), np.maximum(guess[:, :2], guess[:, 2:])], 1
    )
    metric = ReferringBox()
    for key, (a, b) in enumerate(zip(guess, truth, strict=True)):
        metric.update(said(a, b), Box(*b, Relative1000()).to(PIXELS), key)
    ious = box_iou(torch.tensor(guess), torch.tensor(truth)).diagonal()
    result = metric.compute()
    assert result.value == pytest.approx(float((ious >= 0.5).double().mean()))
    assert result.parts["miou"].value == pytest.approx(
        float(ious.mean()), abs=1e-9
    )  # measured 1e-16
    assert 0.3 < result.parts["center"].value < 1


def test_only_the_first_box_and_one_space_are_tried():
    truth = Box(64, 48, 128, 96, PIXELS)
    metric = ReferringBox()
    metric.update(said([100, 100, 200, 200]), truth, "right")
    metric.update(said([0, 0, 50, 50], [100, 100, 200, 200]), truth, "second")
    metric.update(said([64, 48, 128, 96]), truth, "pixels")
    metric.update("[100, 100, 200, 200]", truth, "bare")
    by_key = dict(zip(*metric.per_sample()[:2], strict=True))
    assert sorted(by_key.values()) == [0, 0, 0, 1]
    assert metric.compute().parse_failure_rate == 0.25
    pixels = ReferringBox(written_in=as_the_truth)
    assert pixels.scored(said([64, 48, 128, 96]), truth) == ([1, 1, 1], False)


def test_points_in_boxes_and_masks():
    inside = np.zeros((480, 640), bool)
    inside[48:96, 64:128] = True
    targets = (Box(64, 48, 128, 96, PIXELS), Mask(inside, PIXELS))
    for target in targets:
        for point, hit in (([150, 150], 1), ([99, 150], 0), ([1000, 1000], 0), ([2000, -1], 0)):
            text = json.dumps([{"point_2d": point}, {"point_2d": [150, 150]}])
            assert Pointing().scored(text, target) == ([hit], False)
            assert PointShare().scored(text, target)[0] == [(hit + 1) / 2]
    click = (
        '<tool_call>{"name": "computer_use", "arguments": {"coordinate": [150, 150]}}</tool_call>'
    )
    assert Pointing(keys=CLICK_KEYS).scored(click, targets[0]) == ([1], False)
    assert Pointing().scored("(150, 150)", targets[0]) == ([0], True)


def test_counting_by_hand():
    metric = Counting()
    for key, (text, truth) in enumerate([("3", 3), ("There are five.", 3), ("2 or 3", 3), ("", 4)]):
        metric.update(text, truth, key)
    result = metric.compute()
    assert result.value == 0.25
    assert result.parts["mae"].value == (0 + 2 + 3 + 4) / 4
    assert result.parse_failure_rate == 0.5
    assert Counting(extract=count_shapes).scored(said([0, 0, 1, 1]), 1) == ([1, 0], False)


def test_temporal_grounding_by_hand():
    metric = TemporalGrounding()
    truth = TimeSpan(10, 20)
    answers = ["10 to 20 s", "00:10 - 00:15", "16 - 26 seconds", "30 to 40", "soon"]
    for key, text in enumerate(answers):
        metric.update(text, truth, key)
    result = metric.compute()
    ious = [1, 0.5, 4 / 16, 0, 0]
    assert result.value == pytest.approx(np.mean(ious))
    recalls = [result.parts[f"r1@{t}"].value for t in (0.3, 0.5, 0.7)]
    assert recalls == pytest.approx([0.4, 0.4, 0.2])
    assert result.parse_failure_rate == pytest.approx(0.2)
    assert list(metric.per_sample().scores) == pytest.approx(ious)
