from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
)

from vlmkit.evaluation.metrics.yes_no import HallusionBench, HallusionQuestion, Pope


def test_pope_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    truth, guess = rng.random(200) < 0.5, rng.random(200) < 0.6
    metric = Pope()
    for key in range(200):
        metric.update("Yes." if guess[key] else "No", "yes" if truth[key] else "no", key)
    parts = metric.compute().parts
    oracles = {
        "accuracy": BinaryAccuracy(),
        "precision": BinaryPrecision(),
        "recall": BinaryRecall(),
        "f1": BinaryF1Score(),
    }
    for name, oracle in oracles.items():
        expected = float(oracle(torch.tensor(guess), torch.tensor(truth)))
        assert parts[name].value == pytest.approx(expected, abs=1e-6)  # float32; measured 3e-8
        assert parts[name].low < parts[name].value < parts[name].high
    assert parts["yes_rate"].value == guess.mean()


def test_what_is_neither_is_wrong():
    metric = Pope()
    metric.update("maybe", "no", 1)
    metric.update("yes and no", "yes", 2)
    result = metric.compute()
    assert (result.value, result.parse_failure_rate) == (0, 1)
    assert result.parts["yes_rate"].value == 0
    assert np.isnan(result.parts["precision"].value)
    with pytest.raises(ValueError, match="'Yes'"):
        metric.update("yes", "Yes", 3)


def test_hallusion_bench_by_hand():
    # set: figures 0, 1; questions 0, 1 on each
    rows = [  # set, figure, question, right
        ("s", 0, 0, 1), ("s", 0, 1, 1), ("s", 1, 0, 1), ("s", 1, 1, 0),
        ("t", 0, 0, 1), ("t", 1, 0, 0),
    ]  # fmt: skip
    metric = HallusionBench()
    for key, (in_set, figure, question, right) in enumerate(rows):
        target = HallusionQuestion("yes", "chart", in_set, str(figure), str(question))
        metric.update("Yes" if right else "No", target, key)
    result = metric.compute()
    values = {name: part.value for name, part in result.parts.items()}
    expected = {"aacc": 4 / 6, "facc": 2 / 4, "qacc": 1 / 3}
    assert values == pytest.approx({"average": np.mean(list(expected.values())), **expected})
    assert (result.n, result.clusters) == (6, 2)
