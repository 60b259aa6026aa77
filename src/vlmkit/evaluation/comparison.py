"""Two evaluations side by side: the same questions, one difference with its interval and p-values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.errors import UserError
from vlmkit.evaluation.benchmark import Item
from vlmkit.evaluation.metrics.base import PerSample, sample_key
from vlmkit.evaluation.result import BenchmarkResult, load_items, results_in
from vlmkit.evaluation.statistics import Comparison, compare, holm

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Row:
    """A benchmark, of two evaluations.

    Attributes:
        benchmark: name.
        metric: the primary one.
        higher_is_better: of it.
        a: value of the first, over all its questions.
        b: value of the second.
        mean_a: of the first over the questions that are compared, as the test sees them.
        mean_b: of the second.
        found: the second against the first, question by question.
        p_holm: p-value of the permutation test, adjusted for the number of benchmarks (Holm).
        differences: what of the protocol is not the same; the difference is then not one of models alone.
    """

    benchmark: str
    metric: str
    higher_is_better: bool
    a: float
    b: float
    mean_a: float
    mean_b: float
    found: Comparison
    p_holm: float = math.nan
    differences: tuple[str, ...] = ()

    @property
    def covers_zero(self) -> bool:
        """Whether the interval of the difference leaves open which is better; also where there is none."""
        low, high = self.found.difference.low, self.found.difference.high
        return not (math.isfinite(low) and math.isfinite(high) and (low > 0 or high < 0))

    @property
    def verdict(self) -> str:
        """In words: a difference is shown where its interval leaves out zero and the test agrees.

        Of few questions the bootstrap's interval may be too short, even a single point; the permutation
        test is exact there.
        """
        if self.covers_zero or self.found.p_value >= LEVEL:
            return "no difference shown"
        b_is_better = (self.found.difference.value > 0) == self.higher_is_better
        words = "b is better" if b_is_better else "a is better"
        return words if self.p_holm < LEVEL else f"{words}, not after Holm's correction"

    def as_json(self) -> dict[str, Any]:
        """Plain."""
        found = {**self.found._asdict(), "difference": self.found.difference._asdict()}
        return {**asdict(self), "found": found, "verdict": self.verdict}


def paired(a: Path, b: Path, *, different: bool = False, seed: int = 0) -> list[Row]:
    """Compare all benchmarks that two folders have in common.

    Args:
        a: folder of evaluations.
        b: another one.
        different: compare also where protocols differ; rows say so.
        seed: of bootstrap and permutations.

    Raises:
        UserError: nothing is in common; protocols differ; scores of single questions are missing.
    """
    ours, theirs = results_in(a), results_in(b)
    common = [name for name in ours if name in theirs]
    if not common:
        raise UserError(
            f"a={a} has {', '.join(ours)} and b={b} has {', '.join(theirs)}: no benchmark is in both"
        )
    first = {name: BenchmarkResult.load(ours[name]) for name in common}
    second = {name: BenchmarkResult.load(theirs[name]) for name in common}
    differing = {name: first[name].spec.differences(second[name].spec) for name in common}
    if any(differing.values()) and not different:
        lines = "\n".join(
            f"  {name}: {line}" for name, found in differing.items() for line in found
        )
        raise UserError(
            f"the evaluations are not of the same protocol (a, then b), so that more than the models "
            f"differs:\n{lines}\nevaluate both alike, or give different=true to compare all the same"
        )
    rows = [
        _row(first[name], second[name], ours[name], theirs[name], differing[name], seed)
        for name in common
    ]
    adjusted = holm({row.benchmark: row.found.p_value for row in rows})
    return [replace(row, p_holm=adjusted[row.benchmark]) for row in rows]


def only_in_one(a: Path, b: Path) -> tuple[list[str], list[str]]:
    """Benchmarks of the first folder that the second does not have, and the other way round."""
    ours, theirs = results_in(a), results_in(b)
    return sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))


def per_sample(items: Iterable[Item], metric: str) -> PerSample:
    """Scores of single questions, in the order of keys.

    Args:
        items: questions with their scores.
        metric: whose scores.

    Raises:
        UserError: a question has no score of that metric.
    """
    rows = []
    for item in items:
        if metric not in item.scores:
            raise UserError(f"question {item.key} has no score of {metric}")
        found = item.scores[metric]
        key = sample_key(item.key)
        group = key if item.group is None else sample_key(item.group)
        rows.append((key, math.nan if found.score is None else found.score, found.failed, group))
    rows.sort()
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    kinds: Sequence[Any] = (np.int64, np.float64, np.bool_, np.int64)
    return PerSample(
        *(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True))
    )


def _row(
    a: BenchmarkResult,
    b: BenchmarkResult,
    folder_a: Path,
    folder_b: Path,
    differences: Sequence[str],
    seed: int,
) -> Row:
    if a.primary != b.primary:
        raise UserError(
            f"benchmark {a.spec.benchmark}: a is judged by {a.primary}, b by {b.primary}; the two cannot "
            "be subtracted"
        )
    first = per_sample(load_items(folder_a), a.primary)
    second = per_sample(load_items(folder_b), b.primary)
    try:
        found = compare(first, second, allow_unmatched=bool(differences), seed=seed)
    except UserError as error:
        raise UserError(f"benchmark {a.spec.benchmark}: {error}") from error
    means = _means(first, second)
    return Row(
        benchmark=a.spec.benchmark,
        metric=a.primary,
        higher_is_better=a.higher_is_better,
        a=a.score.value,
        b=b.score.value,
        mean_a=means[0],
        mean_b=means[1],
        found=found,
        differences=tuple(differences),
    )


def _means(first: PerSample, second: PerSample) -> tuple[float, float]:
    """Over the questions that both have a score of."""
    _, i, j = np.intersect1d(first.keys, second.keys, return_indices=True)
    scores = np.column_stack([first.scores[i], second.scores[j]])
    mean_a, mean_b = scores[np.isfinite(scores).all(axis=1)].mean(axis=0).tolist()
    return mean_a, mean_b


def summary(rows: Sequence[Row]) -> Mapping[str, int]:
    """How many benchmarks have which verdict."""
    verdicts = [row.verdict for row in rows]
    return {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
