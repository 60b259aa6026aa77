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

from tests.training.ranks import run_on_ranks
from vlmkit.evaluation.metrics.base import ScoredMetric, sample_key
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


def gather(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    uneven = SAMPLES[:30] if rank == 0 else SAMPLES[28:]  # two of them twice
    one_rank_only = SAMPLES if rank == 0 else []
    for name, mine in (("uneven", uneven), ("one_rank_only", one_rank_only)):
        metric = filled(mine)
        result, per_sample = metric.compute(), metric.per_sample()
        assert sum(map(len, metric.keys)) == len(mine)  # what was gathered is let go again
        record = {"result": result.to_dict(), "per_sample": [x.tolist() for x in per_sample]}
        (folder / f"{name}{rank}.json").write_text(json.dumps(record))
    dist.destroy_process_group()


@pytest.mark.distributed
def test_ranks_are_equal_to_one_process(tmp_path):
    for process in run_on_ranks("tests.evaluation.metrics.test_base:gather", 2, tmp_path):
        assert process.returncode == 0, process.stderr
    one = filled(SAMPLES)
    expected = {
        "result": one.compute().to_dict(),
        "per_sample": [x.tolist() for x in one.per_sample()],
    }
    found = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert len(found) == 4
    assert all(record == expected for record in found)


def test_metrics_need_no_gradient_and_no_device():
    assert not any(p.requires_grad for p in StatedMatch().parameters())
    assert StatedMatch().to(torch.device("cpu")).device.type == "cpu"
