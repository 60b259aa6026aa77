from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torchmetrics import MetricCollection

from tests.training.ranks import run_on_ranks
from vlmkit.data.geometry.shapes import Box, Grounding, grounding_text
from vlmkit.data.geometry.spaces import Relative1000
from vlmkit.evaluation.metrics.base import ScoredMetric, sample_key
from vlmkit.evaluation.metrics.detection import DetectionAP
from vlmkit.evaluation.metrics.short_answer import StatedMatch

SAMPLES = [(f"answer {i % 3}", "answer 0", f"q{i}", f"picture {i // 4}") for i in range(37)]


def filled(samples, **options) -> ScoredMetric:
    metric = StatedMatch(**options)
    for prediction, target, key, group in samples:
        metric.update(prediction, target, key, group)
    return metric


def test_the_value_is_the_mean_and_failures_are_counted():
    metric = filled([("a", "a", 1, None), ("b", "a", 2, None), ("<think>a", "a", 3, None)])
    metric.update("", "a", 4)
    result = metric.compute()
    assert (result.value, result.n, result.parse_failure_rate) == (0.25, 4, 0.5)
    assert list(metric.per_sample().scores) == [1, 0, 0, 0]
    assert list(metric.per_sample().failed) == [False, False, True, True]
    json.dumps(result.to_dict(), allow_nan=False)


def test_without_samples_there_is_no_value():
    with pytest.warns(UserWarning, match="before"):
        result = StatedMatch().compute()
    assert result.n == 0
    assert math.isnan(result.value)
    assert result.to_dict()["value"] is None


def test_reasoning_is_no_answer():
    metric = filled(
        [("<think>paris</think>", "paris", 1, None), ("x</think> Paris", "paris", 2, None)]
    )
    assert list(metric.per_sample().scores) == [0, 1]


def test_a_key_counts_once_and_order_does_not_matter():
    once = filled(SAMPLES).compute()
    shuffled = random.Random(0).sample(SAMPLES, len(SAMPLES))
    assert filled(shuffled + shuffled[:9]).compute() == once


def test_the_interval_is_that_of_scipy():
    samples = [(p, t, k, None) for p, t, k, _ in SAMPLES]
    result = filled(samples, num_resamples=20_000).compute()
    scores = filled(samples).per_sample().scores
    expected = stats.bootstrap(
        (scores,), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert result.low == pytest.approx(expected.low, abs=0.03)  # measured 0.0
    assert result.high == pytest.approx(expected.high, abs=0.03)  # measured 0.0


def test_clusters_are_drawn_whole():
    dependent = [(str(i // 10 % 2), "0", i, i // 10) for i in range(200)]
    grouped, alone = filled(dependent), filled([(p, t, k, None) for p, t, k, _ in dependent])
    assert grouped.compute().clusters == 20
    width = grouped.compute().high - grouped.compute().low
    assert width / (alone.compute().high - alone.compute().low) == pytest.approx(10**0.5, rel=0.15)


def test_keys():
    assert sample_key(-5) == -5
    assert sample_key("q1") == sample_key("q1") != sample_key("q2")
    assert -(2**63) <= sample_key("\ud800") < 2**63


def test_states_survive_a_checkpoint_and_a_cast():
    metric = filled(SAMPLES)
    metric.persistent(True)
    again = StatedMatch()
    again.persistent(True)
    again.load_state_dict(metric.state_dict())
    with pytest.warns(UserWarning, match="before"):  # it knows only updates of its own
        assert again.half().compute() == metric.compute()


def detections(keys) -> ScoredMetric:
    space = Relative1000()
    metric = DetectionAP(["cat", "dog"], thresholds=(0.5, 0.75), num_resamples=50)
    for key in keys:
        truth = [Grounding(Box(0, 0, 100 + key, 100, space), ("cat", "dog")[key % 2])]
        written = [Grounding(Box(0, 0, 100, 100, space), "cat"), *truth[: key % 3]]
        metric.update(grounding_text(written), truth, key)
    return metric


def shares(rank: int) -> dict[str, ScoredMetric]:
    """What a rank has seen: uneven shares that overlap, then everything on one rank."""
    uneven = (SAMPLES[:30], SAMPLES[28:])[rank]  # two of them twice
    pictures = (range(0, 23), range(20, 31))[rank]
    return {
        "uneven": filled(uneven),
        "one_rank_only": filled(SAMPLES if rank == 0 else []),
        "detection": detections(pictures),
        "detection_on_one_rank": detections(range(31) if rank == 0 else []),
    }


def record_of(metric: ScoredMetric) -> dict:
    per_sample = [x.tolist() for x in metric.per_sample()]
    return {"result": metric.compute().to_dict(), "per_sample": per_sample}


def gather(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name, metric in shares(rank).items():
        mine = sum(map(len, metric.keys))
        (folder / f"{name}-{rank}.json").write_text(json.dumps(record_of(metric)))
        assert sum(map(len, metric.keys)) == mine  # what was gathered is let go again
    dist.destroy_process_group()


@pytest.mark.distributed
def test_ranks_are_equal_to_one_process(tmp_path):
    for process in run_on_ranks("tests.evaluation.metrics.test_base:gather", 2, tmp_path):
        assert process.returncode == 0, process.stderr
    words, pictures = record_of(filled(SAMPLES)), record_of(detections(range(31)))
    for name, expected in {
        **dict.fromkeys(("uneven", "one_rank_only"), words),
        **dict.fromkeys(("detection", "detection_on_one_rank"), pictures),
    }.items():
        for rank in range(2):
            assert json.loads((tmp_path / f"{name}-{rank}.json").read_text()) == expected, name


def test_metrics_work_in_collections_and_step_by_step():
    collection = MetricCollection({"a": StatedMatch(), "b": StatedMatch(num_resamples=0)})
    for prediction, target, key, group in SAMPLES:
        step = collection(prediction, target, key, group)
        assert step["a"].n == 1
    whole = collection.compute()
    assert whole["a"] == filled(SAMPLES).compute()
    assert whole["b"].value == whole["a"].value
    assert collection.clone().compute()["a"].n == len(SAMPLES)


def test_metrics_need_no_gradient_and_no_device():
    assert not any(p.requires_grad for p in StatedMatch().parameters())
    assert StatedMatch().to(torch.device("cpu")).device.type == "cpu"
