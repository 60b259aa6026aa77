"""Is one run better than another? Intervals, paired tests by sample, and what a set could show at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vlmkit.errors import UserError, listed
from vlmkit.evaluation.extras import eval_package
from vlmkit.evaluation.metrics.base import Estimate, PerSample, percentiles, sum_by


class Comparison(NamedTuple):
    """Second run against first, on the samples that both have.

    Attributes:
        difference: mean of second minus first, with the interval of the paired bootstrap.
        p_value: two-sided, of the sign-flip permutation test over clusters.
        mcnemar_p: exact McNemar test over samples; NaN where scores are not all 0 or 1. It takes
            samples for independent, whatever their groups.
        n: pairs.
        clusters: what is resampled and flipped.
        wins: samples on which the second scores higher.
        losses: samples on which it scores lower.
        detectable: smallest true difference that a set like this finds with a power of 0.8 at 0.05.
        dropped: samples that only one of the two has, or without a score in either.
    """

    difference: Estimate
    p_value: float
    mcnemar_p: float
    n: int
    clusters: int
    wins: int
    losses: int
    detectable: float
    dropped: int


def bca_interval(
    scores: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    num_resamples: int = 5000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Mean with its bias-corrected and accelerated interval (Efron 1987), by scipy.

    Args:
        scores: (n,).
        groups: (n,) equal for samples that are drawn together.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
        level: share of the distribution within the interval.

    Returns:
        Percentile ends where BCa has none, as for scores that are all equal.
    """
    stats = eval_package("scipy.stats", "bias-corrected intervals")
    index = (
        np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(scores))
    )
    sums = sum_by(index, np.column_stack([scores, np.ones(len(scores))]))
    value = float(np.mean(scores))
    if len(sums) < 2:
        return Estimate(value, math.nan, math.nan)
    if np.ptp(sums[:, 0] / sums[:, 1]) == 0:
        return Estimate(value, value, value)

    def mean(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis) / count.sum(axis)

    found = stats.bootstrap(
        (sums[:, 0], sums[:, 1]),
        mean,
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=num_resamples,
        batch=max(1, 4_000_000 // len(sums)),
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    interval = found.confidence_interval
    if not np.isfinite([interval.low, interval.high]).all():
        return percentiles(value, found.bootstrap_distribution, level)
    return Estimate(value, float(interval.low), float(interval.high))


def compare(
    first: PerSample,
    second: PerSample,
    *,
    allow_unmatched: bool = False,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs sample by sample.

    Args:
        first: of a metric on one run.
        second: of the same metric on another run.
        allow_unmatched: compare on the common samples only, and say how many others there were.
        num_resamples: of the bootstrap, and of the permutation test where not all signs can be tried.
        seed: of both.

    Raises:
        UserError: the runs answered different samples, or none in common, or group them differently.
    """
    keys, a, b = np.intersect1d(first.keys, second.keys, return_indices=True)
    unmatched = len(first.keys) + len(second.keys) - 2 * len(keys)
    if unmatched and not allow_unmatched:
        odd = np.setxor1d(first.keys, second.keys)
        raise UserError(
            f"{unmatched} samples are in one run only (keys {listed(map(str, odd), 4)}); compare runs "
            "of the same set, or allow unmatched samples"
        )
    if (first.groups[a] != second.groups[b]).any():
        raise UserError("the runs group their samples differently; they are not of the same set")
    scores = np.column_stack([first.scores[a], second.scores[b]])
    scored = np.isfinite(scores).all(axis=1)
    scores, groups = scores[scored], first.groups[a][scored]
    if not len(scores):
        raise UserError("the runs have no scored sample in common")
    difference = scores[:, 1] - scores[:, 0]
    index = np.unique(groups, return_inverse=True)[1]
    sums = sum_by(index, np.column_stack([difference, np.ones(len(difference))]))
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(
        difference=_paired_bootstrap(sums, num_resamples, seed),
        p_value=sign_flip_p(sums[:, 0], num_resamples, seed),
        mcnemar_p=mcnemar_p(wins, losses) if np.isin(scores, (0, 1)).all() else math.nan,
        n=len(scores),
        clusters=len(sums),
        wins=wins,
        losses=losses,
        detectable=minimum_detectable_effect(sums[:, 0] * len(sums) / len(scores)),
        dropped=unmatched + int((~scored).sum()),
    )


def _paired_bootstrap(sums: np.ndarray, num_resamples: int, seed: int) -> Estimate:
    value = float(sums[:, 0].sum() / sums[:, 1].sum())
    clusters = len(sums)
    if clusters < 2:
        return Estimate(value, math.nan, math.nan)
    rng, at_once = np.random.default_rng(seed), max(1, 4_000_000 // clusters)
    drawn = []
    for done in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - done)
        total = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size) @ sums
        drawn.append(total[:, 0] / total[:, 1])
    return percentiles(value, np.concatenate(drawn))


def sign_flip_p(differences: np.ndarray, num_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip permutation test of a mean of 0.

    All signs are tried where that is less work than `num_resamples` random ones. Differences of 0 are
    left out, which changes nothing.
    """
    stats = eval_package("scipy.stats", "permutation tests")
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    if len(differences) == 1:
        return 1.0  # both signs are as far from 0
    found = stats.permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, 4_000_000 // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, found.pvalue))


def mcnemar_p(wins: int, losses: int) -> float:
    """Two-sided exact McNemar test: of the samples on which two runs differ, is one favoured?"""
    if wins + losses == 0:
        return 1.0
    stats = eval_package("scipy.stats", "McNemar's test")
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for how many there are (Holm 1979), in the given order."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, p_values[name] * (len(ordered) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def minimum_detectable_effect(
    differences: np.ndarray, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest true mean that a two-sided test of so many differences finds with this power.

    `(z(1 - alpha / 2) + z(power)) * sd / sqrt(n)`, the normal approximation; NaN for fewer than two.
    """
    if len(differences) < 2:
        return math.nan
    normal = eval_package("scipy.stats", "power analysis").norm
    deviations = normal.ppf(1 - alpha / 2) + normal.ppf(power)
    return float(deviations * np.std(differences, ddof=1) / math.sqrt(len(differences)))
