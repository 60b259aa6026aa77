from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from vlmkit.errors import UserError
from vlmkit.evaluation.metrics.base import PerSample
from vlmkit.evaluation.statistics import (
    bca_interval,
    compare,
    holm,
    mcnemar_p,
    minimum_detectable_effect,
    sign_flip_p,
)


def run(scores, keys=None, groups=None) -> PerSample:
    scores = np.asarray(scores, float)
    keys = np.arange(len(scores)) if keys is None else np.asarray(keys)
    groups = keys if groups is None else np.asarray(groups)
    return PerSample(keys, scores, np.zeros(len(scores), bool), groups)


def test_bca_is_that_of_scipy_for_a_mean():
    scores = np.random.default_rng(0).exponential(size=80)
    ours = bca_interval(scores, num_resamples=20_000)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)  # 0.006
    clustered = bca_interval(np.repeat(scores, 5), np.repeat(np.arange(80), 5))
    assert clustered.high - clustered.low == pytest.approx(ours.high - ours.low, rel=0.1)
    assert bca_interval(np.ones(9)) == (1, 1, 1)
    assert math.isnan(bca_interval(np.ones(1)).low)


def test_sign_flips_are_all_sign_flips():
    differences = np.random.default_rng(1).normal(0.4, 1, 9)
    flipped = [abs(np.dot(s, differences)) for s in product((-1, 1), repeat=9)]
    expected = np.mean(np.array(flipped) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p(differences) == pytest.approx(expected)
    assert sign_flip_p(np.concatenate([differences, np.zeros(50)])) == pytest.approx(expected)
    assert sign_flip_p(np.zeros(4)) == 1


def test_sign_flips_of_many_are_near_the_t_test():
    differences = np.random.default_rng(2).normal(0.1, 1, 400)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected, abs=0.02)  # measured 0.002


def test_mcnemar_is_the_binomial_sum():
    tail = sum(math.comb(12, i) for i in range(3 + 1)) / 2**12
    assert mcnemar_p(9, 3) == pytest.approx(2 * tail)
    assert mcnemar_p(0, 0) == mcnemar_p(1, 1) == 1


def test_holm_by_hand():
    adjusted = holm({"c": 0.04, "a": 0.01, "b": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"c": 0.06, "a": 0.03, "b": 0.06, "d": 0.02})
    assert list(adjusted) == ["c", "a", "b", "d"]
    assert holm({}) == {}


def test_the_detectable_effect_is_found_with_its_power():
    rng = np.random.default_rng(3)
    sets = rng.normal(0, 2, (4000, 100))
    effect = minimum_detectable_effect(sets[0])
    assert effect == pytest.approx(2.8016 * sets[0].std(ddof=1) / 10, rel=1e-4)
    found = stats.ttest_1samp(sets + 2.8016 * 2 / 10, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)  # measured 0.79


def test_runs_are_matched_by_key():
    first = run([1, 0, 0, 1, 0, 0], keys=[5, 4, 3, 2, 1, 0])
    second = run([1, 1, 0, 1, 1, 1], keys=[2, 1, 0, 5, 4, 3])
    found = compare(first, second)
    assert found.difference.value == pytest.approx(3 / 6)
    assert (found.wins, found.losses, found.n) == (3, 0, 6)
    assert found.p_value == found.mcnemar_p == pytest.approx(2 / 2**3)
    assert found.difference.low <= 0.5 <= found.difference.high


def test_the_paired_interval_is_narrower_than_two_intervals():
    rng = np.random.default_rng(4)
    hard = rng.random(500)
    first = run(rng.random(500) < hard)
    second = run(np.where(rng.random(500) < 0.1, 1, first.scores))
    found = compare(first, second)
    alone = bca_interval(first.scores)
    assert found.difference.high - found.difference.low < 0.6 * (alone.high - alone.low)


def test_clusters_widen_the_test():
    differences = np.repeat(np.random.default_rng(5).normal(0.6, 1, 20), 10)
    first, groups = np.zeros(200), np.repeat(np.arange(20), 10)
    together = compare(run(first, groups=groups), run(differences, groups=groups))
    alone = compare(run(first), run(differences))
    assert together.clusters == 20
    assert together.p_value > 10 * alone.p_value
    assert together.detectable == pytest.approx(alone.detectable * 10**0.5, rel=0.05)
    assert math.isnan(together.mcnemar_p)


def test_unequal_sets_are_refused_unless_allowed():
    with pytest.raises(UserError, match="1 samples are in one run only"):
        compare(run([1, 0]), run([1, 0, 1]))
    assert compare(run([1, 0]), run([1, 0, 1]), allow_unmatched=True).dropped == 1
    with pytest.raises(UserError, match="group"):
        compare(run([1, 0]), run([1, 0], groups=[0, 0]))
    with pytest.raises(UserError, match="no scored sample"):
        compare(run([np.nan]), run([1]))
