"""What all metrics share: rows of numbers per sample, kept over ranks, and values with an interval.

A metric turns the text of one sample into a row of numbers. Its values are functions of sums of rows,
so a bootstrap is one matrix product, and a metric that is no mean (F1, character error rate) resamples
whole samples like any other. Rows are synchronised by torchmetrics; a sample that a padded sampler
gave to two ranks counts once.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vlmkit.evaluation.extract.final_answer import final_answer

Values = dict[str, np.ndarray]
"""Values by name, the headline first; each has the leading shape of the sums it was made from."""


class Estimate(NamedTuple):
    """A value and its bootstrap interval. The interval is NaN for fewer than two clusters."""

    value: float
    low: float
    high: float


class MetricResult(NamedTuple):
    """What a metric found.

    Attributes:
        value: the headline; NaN without samples.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        n: distinct samples.
        clusters: what the bootstrap resamples: groups where they were given, else samples.
        parse_failure_rate: share of samples without an answer that could be read.
        parts: all values by name, the headline first.
        chance: the headline of guessing blindly, where the metric knows it.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    parse_failure_rate: float
    parts: Mapping[str, Estimate]
    chance: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """For JSON: plain numbers, None in place of NaN."""
        record: dict[str, Any] = {
            name: _plain(value) for name, value in self._asdict().items() if name != "parts"
        }
        record["parts"] = {
            name: {field: _plain(number) for field, number in part._asdict().items()}
            for name, part in self.parts.items()
        }
        return record


class PerSample(NamedTuple):
    """Scores in the order of keys, for paired tests.

    Attributes:
        keys: (n,) int64; see `sample_key`.
        scores: (n,) float64. NaN where a sample alone has no score.
        failed: (n,) bool, no answer could be read.
        groups: (n,) int64, the key of the sample's cluster.
    """

    keys: np.ndarray
    scores: np.ndarray
    failed: np.ndarray
    groups: np.ndarray


class Table(NamedTuple):
    """All samples of all ranks, each once, in the order of keys.

    Attributes:
        keys: (n,) int64.
        groups: (n,) int64.
        rows: (n, columns) float64.
        failed: (n,) bool.
    """

    keys: np.ndarray
    groups: np.ndarray
    rows: np.ndarray
    failed: np.ndarray

    @property
    def clusters(self) -> np.ndarray:
        """(n,) which cluster a sample belongs to, counted from 0 in the order of groups."""
        return np.unique(self.groups, return_inverse=True)[1]


def sample_key(name: int | str) -> int:
    """A signed 64-bit key: whole numbers are their own, names a hash that is equal everywhere."""
    if isinstance(name, int):
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class ScoredMetric(Metric, ABC):
    """A metric of texts, sample by sample.

    Subclasses name their `columns` and give a row per sample in `score`. The first column is the
    sample's score, and by default the metric's value is its mean; `values` says otherwise.

    Args:
        num_resamples: of the bootstrap; 0 leaves intervals out.
        seed: of the bootstrap.
        max_chars: a longer text is a parse failure, as no answer is that long.
    """

    full_state_update = False
    columns: ClassVar[tuple[str, ...]] = ("score",)
    higher_is_better: bool | None = True

    keys: list[Tensor]
    groups: list[Tensor]
    rows: list[Tensor]
    failed: list[Tensor]

    def __init__(
        self, *, num_resamples: int = 2000, seed: int = 0, max_chars: int = 1_000_000
    ) -> None:
        super().__init__()
        self.num_resamples = num_resamples
        self.seed = seed
        self.max_chars = max_chars
        self._empty: dict[str, Tensor] = {}
        self.add_rows("keys", torch.zeros(0, dtype=torch.int64))
        self.add_rows("groups", torch.zeros(0, dtype=torch.int64))
        self.add_rows("rows", torch.zeros(0, len(self.columns), dtype=torch.float64))
        self.add_rows("failed", torch.zeros(0, dtype=torch.bool))

    def add_rows(self, name: str, empty: Tensor) -> None:
        """Add a state of rows that are put one below the other over ranks.

        Args:
            name: of the state, a list of tensors.
            empty: a tensor of no rows with the right type and width.
        """
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._empty[name] = empty

    # -- what a subclass says ---------------------------------------------------------------

    @abstractmethod
    def score(self, text: str, target: Any) -> Sequence[float] | None:
        """One number per column for one sample.

        Args:
            text: what the model wrote after its reasoning, never empty.
            target: the truth, in the form that the metric's docstring names.

        Returns:
            None where no answer can be read: the sample then has the row of `failure`.

        Raises:
            ValueError: the target is not of that form.
        """

    def failure(self, target: Any) -> Sequence[float]:
        """The row of a sample without an answer: zeros, the worst score, unless it says otherwise."""
        return [0.0] * len(self.columns)

    def sums(self, table: Table) -> np.ndarray:
        """(clusters, terms) what is summed over clusters: by default all columns, and a count."""
        counted = np.concatenate([table.rows, np.ones((len(table.rows), 1))], axis=1)
        return sum_by(table.clusters, counted)

    def values(self, sums: np.ndarray) -> Values:
        """Values from sums over clusters; by default the mean of the first column.

        Args:
            sums: (..., terms), see `sums`.
        """
        return {"score": ratio(sums[..., 0], sums[..., -1])}

    def estimates(self, table: Table) -> dict[str, Estimate]:
        """Values with intervals: percentiles over resampled clusters."""
        sums = self.sums(table)
        point = self.values(sums.sum(0))
        if len(sums) < 2 or not self.num_resamples:
            return {name: Estimate(float(v), math.nan, math.nan) for name, v in point.items()}
        drawn = [self.values(part) for part in self._resampled(sums)]
        return {
            name: percentiles(float(v), np.concatenate([part[name] for part in drawn]))
            for name, v in point.items()
        }

    def chance(self, table: Table) -> float:
        """The headline of guessing blindly; NaN where the metric cannot know."""
        return math.nan

    def sample_scores(self, table: Table) -> np.ndarray:
        """(n,) for paired tests; by default the first column."""
        return table.rows[:, 0]

    # -- torchmetrics -----------------------------------------------------------------------

    def update(
        self, prediction: str, target: Any, key: int | str, group: int | str | None = None
    ) -> None:
        """Add one sample.

        Args:
            prediction: the raw text of the model, reasoning and all.
            target: the truth; the metric's docstring names its form.
            key: of the sample, unique in the set. The first of equal keys counts.
            group: samples that are not independent (questions on one picture) share a group, and
                the bootstrap draws groups. None: each sample for itself.
        """
        row, failed = self.scored(prediction, target)
        number = sample_key(key)
        self.append("keys", [number])
        self.append("groups", [number if group is None else sample_key(group)])
        self.append("rows", [row])
        self.append("failed", [failed])

    def scored(self, prediction: str, target: Any) -> tuple[list[float], bool]:
        """The row of one sample, and whether no answer could be read."""
        text = final_answer(prediction) if len(prediction) <= self.max_chars else None
        row = self.score(text, target) if text is not None else None
        numbers = list(row if row is not None else self.failure(target))
        assert len(numbers) == len(self.columns), f"{type(self).__name__}: {numbers}"
        return numbers, row is None

    def append(self, name: str, rows: Any) -> None:
        """Put rows below those that a state of `add_rows` has."""
        empty = self._empty[name]
        added = torch.tensor(rows, dtype=empty.dtype, device=self.device)
        getattr(self, name).append(added.reshape(-1, *empty.shape[1:]))

    def compute(self) -> MetricResult:
        """Values, intervals, number of samples and of parse failures, over all ranks."""
        table = self.table()
        n = len(table.keys)
        parts = self.estimates(table)
        value, low, high = next(iter(parts.values()))
        return MetricResult(
            value=value,
            low=low,
            high=high,
            n=n,
            clusters=len(np.unique(table.groups)),
            parse_failure_rate=float(table.failed.mean()) if n else math.nan,
            parts=parts,
            chance=self.chance(table) if n else math.nan,
        )

    def per_sample(self) -> PerSample:
        """Scores of all ranks. Call it on every rank: it synchronises as `compute` does."""
        table = self.synced_table()
        return PerSample(table.keys, self.sample_scores(table), table.failed, table.groups)

    def synced_table(self) -> Table:
        """All samples of all ranks; to be called on every rank."""
        alone = not self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=alone, should_unsync=alone
        ):
            return self.table()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics does it; a rank without samples takes part with empty tensors.

        torchmetrics would give a rank without any a float32 vector, whatever the others gather.
        """
        if not self._is_synced:
            for name in self._empty:
                if not getattr(self, name):
                    self.append(name, [])
        super().sync(*args, **kwargs)

    def table(self) -> Table:
        """What this process holds, each sample once, by key."""
        keys = self.gathered("keys")
        unique, first = np.unique(keys, return_index=True)
        states = (self.gathered(name)[first] for name in ("groups", "rows", "failed"))
        return Table(unique, *states)

    def gathered(self, name: str) -> np.ndarray:
        """One state as one array on the host."""
        state = getattr(self, name)  # a list before, a tensor after ranks were put together
        return dim_zero_cat(state if len(state) else [self._empty[name]]).cpu().numpy()

    def _resampled(self, sums: np.ndarray) -> list[np.ndarray]:
        """Sums over clusters drawn with replacement, in parts of bounded memory."""
        rng = np.random.default_rng(self.seed)
        clusters = len(sums)
        share = np.full(clusters, 1 / clusters)
        at_once = max(1, 4_000_000 // clusters)
        sizes = [
            min(at_once, self.num_resamples - done)
            for done in range(0, self.num_resamples, at_once)
        ]
        return [rng.multinomial(clusters, share, size=size) @ sums for size in sizes]


def sum_by(index: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(groups, columns) sums of rows with the same index; indices count from 0 without gaps."""
    totals = np.zeros((int(index.max()) + 1 if len(index) else 0, rows.shape[1]))
    np.add.at(totals, index, rows)
    return totals


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where nothing was counted."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    empty = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=empty, where=denominator != 0)


def percentiles(value: float, drawn: np.ndarray, level: float = 0.95) -> Estimate:
    """An estimate with the percentile interval of resampled values; NaN among them are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
