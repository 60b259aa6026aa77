"""A benchmark: questions, how they may be answered, how answers are scored, what others reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmkit.data.sizes.settings_key import plain
from vlmkit.errors import ConfigError
from vlmkit.evaluation.answerer import Answerer
from vlmkit.evaluation.decoding import Budget, Decoding
from vlmkit.evaluation.metrics.base import ScoredMetric
from vlmkit.evaluation.question import Questions
from vlmkit.evaluation.spec import EvalSpec

INTERNALS = frozenset({
    *("training", "update", "compute", "compute_with_cache", "compute_on_cpu", "dist_sync_fn"),
    *("dist_sync_on_step", "distributed_available_fn", "process_group", "sync_on_compute"),
    *("num_resamples", "seed"),
})  # fmt: skip
"""What torchmetrics keeps in every metric, and what moves intervals only."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Scores that others have reported.

    Attributes:
        source: where they stand.
        scores: by edition (`instruct`, `thinking`), by size (`8b`).
        scale: what a reported number is multiplied with to be in the unit of the primary metric.
    """

    source: str
    scores: Mapping[str, Mapping[str, float]]
    scale: float = 0.01

    def scaled(self) -> dict[str, dict[str, float]]:
        """Scores in the unit of the primary metric."""
        return {
            edition: {size: float(value) * self.scale for size, value in by_size.items()}
            for edition, by_size in self.scores.items()
        }


class Benchmark:
    """Questions with known answers.

    Args:
        name: short, as in file names.
        questions: what is asked.
        metrics: by name; each is given the visible answer, the target and the key of every question.
        primary: the metric that stands for the benchmark.
        decoding: how answers are drawn.
        budget: of pixels and frames.
        chance: value of the primary metric that guessing reaches; None: as the metric knows it.
        published: scores of others.
        about: one line on what is asked, and of what kind the data are.

    Raises:
        ConfigError: the primary metric is none of the metrics.
    """

    def __init__(
        self,
        name: str,
        questions: Questions,
        metrics: Mapping[str, ScoredMetric],
        primary: str,
        decoding: Decoding | None = None,
        budget: Budget | None = None,
        chance: float | None = None,
        published: Published | None = None,
        about: str = "",
    ) -> None:
        if primary not in metrics:
            raise ConfigError(
                f"benchmark {name}: primary={primary} is none of its metrics {sorted(metrics)}"
            )
        self.name, self.questions, self.primary = name, questions, primary
        self.metrics = dict(metrics)
        self.decoding, self.budget = decoding or Decoding(), budget or Budget()
        self.chance, self.published, self.about = chance, published, about

    def chosen(self, limit: int | None, seed: int) -> Sequence[int]:
        """Items that are asked: all, or so many drawn at random, in their order."""
        total = len(self.questions)
        if limit is None or limit >= total:
            return range(total)
        drawn = np.random.default_rng(seed).choice(total, limit, replace=False)
        return sorted(drawn.tolist())

    def spec(self, answerer: Answerer, limit: int | None, seed: int) -> EvalSpec:
        """What a score of this benchmark depends on."""
        import vlmkit

        total = len(self.questions)
        asked = "all" if limit is None or limit >= total else {"limit": limit, "seed": seed}
        return EvalSpec(
            benchmark=self.name,
            data={"fingerprint": self.questions.fingerprint, "items": total, "asked": asked},
            prompt={"questions": self.questions.settings, **answerer.prompt_settings()},
            media=dict(answerer.media_settings(self.budget)),
            decoding=plain(vars(self.decoding)),
            scoring={name: settings_of(metric) for name, metric in self.metrics.items()},
            checkpoint=answerer.checkpoint,
            code={"vlmkit": vlmkit.__version__},
        )


def settings_of(metric: ScoredMetric) -> dict[str, Any]:
    """The class of a metric, and what it was given, without what it has counted."""
    own = {
        name: plain(value)
        for name, value in vars(metric).items()
        if not name.startswith("_") and name not in metric._defaults and name not in INTERNALS
    }
    parts = {name: settings_of(part) for name, part in metric.named_children()}  # type: ignore[arg-type]
    return {"metric": f"{type(metric).__module__}.{type(metric).__qualname__}", **own, **parts}


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """How one answer was scored by one metric."""

    score: float | None  # None: the metric gives no score to single items
    failed: bool  # no answer could be read from the text


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question with its answers and their scores, for reports and paired tests."""

    key: str
    question: str
    target: Any
    texts: tuple[str, ...]
    finish: tuple[str, ...]
    error: str | None
    scores: Mapping[str, ItemScore]
    group: str | None = None
    categories: Mapping[str, str] = field(default_factory=dict)
