"""Ask, score, write down."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.errors import UserError
from vlmkit.evaluation.answerer import Answerer
from vlmkit.evaluation.benchmark import Benchmark, Item, ItemScore
from vlmkit.evaluation.metrics.base import ScoredMetric
from vlmkit.evaluation.metrics.needle import NeedleGrid
from vlmkit.evaluation.needle_figure import heat_map
from vlmkit.evaluation.question import Question
from vlmkit.evaluation.responses import Response, ResponseLog
from vlmkit.evaluation.result import HEAT_MAP, BenchmarkResult, HeatMap, Score, save_items
from vlmkit.evaluation.thumbnails import MOST_QUESTIONS, Outcome, drawn, save_pictures

Progress = Callable[[int, int], None]
"""Told how many of how many questions are answered."""


@dataclass(frozen=True)
class Share:
    """Which of the questions this process answers.

    Attributes:
        rank: of this process.
        ranks: processes that share the questions.
        wait: until all of them have come as far.
    """

    rank: int = 0
    ranks: int = 1
    wait: Callable[[], object] = lambda: None

    @property
    def local_rank(self) -> int:
        """Among the processes of this machine."""
        return int(os.environ.get("LOCAL_RANK", self.rank))


def evaluate(
    benchmark: Benchmark,
    answerer: Answerer,
    folder: Path,
    limit: int | None = None,
    seed: int = 0,
    *,
    share: Share | None = None,
    fresh: bool = False,
    progress: Progress = lambda done, total: None,
) -> BenchmarkResult:
    """Answer and score a benchmark, or go on where an earlier call stopped.

    Args:
        benchmark: what is asked.
        answerer: who answers.
        folder: of all evaluations; the result goes to a folder below it that the spec names.
        limit: questions to ask, drawn at random; None asks all.
        seed: of that draw.
        share: of several processes; all score, the first writes.
        fresh: whether answers that are there are thrown away.
        progress: told after each answer.

    Raises:
        DataError: a question of the benchmark cannot be read; names it.
        UserError: two questions have the same key, or the folder holds answers to something else.
    """
    share = share or Share()
    spec = benchmark.spec(answerer, limit, seed)
    own = folder / spec.name
    if fresh and share.rank == 0:
        shutil.rmtree(own, ignore_errors=True)
    share.wait()
    chosen = benchmark.chosen(limit, seed)
    log = ResponseLog(own, {"spec": spec.name}, share.rank)
    share.wait()  # until all have read what is there
    clock = Stopwatch(own / "seconds")
    if len(log) < len(chosen):
        mine = chosen[share.rank :: share.ranks]
        progress(len(log), len(chosen))
        left = (q for q in _questions(benchmark, mine) if q.key not in log)
        for response in answerer.answer(left, benchmark.decoding, benchmark.budget):
            log.add(response)
            progress(len(log), len(chosen))
    share.wait()
    if share.ranks > 1:
        log = ResponseLog(own, {"spec": spec.name}, share.rank)
    if share.rank == 0:
        clock.stop()
    found, items = score(
        benchmark,
        ((question, log[question.key]) for question in _questions(benchmark, chosen)),
        answerer.opens_thinking,
    )
    made = BenchmarkResult(
        **found,
        spec=spec,
        model=answerer.name,
        seconds=clock.seconds,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if share.rank == 0:
        save_items(items, own)
        _illustrate(benchmark, chosen, items, made, own, seed)
        made.save(own)
    return made


def _illustrate(
    benchmark: Benchmark,
    chosen: Sequence[int],
    items: Sequence[Item],
    made: BenchmarkResult,
    folder: Path,
    seed: int,
) -> None:
    """Pictures of some questions, and the heat map of needles."""
    outcomes = [Outcome.of(item, made.primary, made.higher_is_better) for item in items]
    looked_at = [chosen[i] for i in drawn(outcomes, MOST_QUESTIONS, seed)]
    save_pictures(_questions(benchmark, looked_at), folder)
    if made.heat_map is not None:
        title = f"{benchmark.name}, {made.model}"
        heat_map(made.heat_map, title, made.chance, folder / HEAT_MAP)


def score(
    benchmark: Benchmark, answered: Iterable[tuple[Question, Response]], opens_thinking: bool
) -> tuple[dict[str, Any], list[Item]]:
    """Score responses.

    Args:
        benchmark: whose metrics.
        answered: questions with what was answered.
        opens_thinking: see `Answerer`.

    Returns:
        Fields of a `BenchmarkResult`, and every item.

    Raises:
        UserError: two questions have the same key.
    """
    metrics = {name: _fresh(metric) for name, metric in benchmark.metrics.items()}
    alone = {name: _fresh(metric) for name, metric in benchmark.metrics.items()}
    parts: dict[str, dict[str, ScoredMetric]] = {}
    items: dict[str, Item] = {}
    unanswered: Counter[str] = Counter()
    cut_off = answers = prompt_tokens = new_tokens = 0
    for question, response in answered:
        if question.key in items:
            raise UserError(
                f"benchmark {benchmark.name}: two questions have the key {question.key}"
            )
        texts = response.texts or ("",)
        if opens_thinking:  # the block that the prompt has opened
            texts = tuple(f"<think>\n{text}" for text in texts)
        scores = {name: _item_score(metric, texts, question) for name, metric in alone.items()}
        for metric in metrics.values():
            _update(metric, texts, question)
        for category, value in question.categories.items():
            of_category = parts.setdefault(category, {})
            if value not in of_category:
                of_category[value] = _fresh(benchmark.metrics[benchmark.primary])
            _update(of_category[value], texts, question)
        if response.error is not None:
            unanswered[response.error.partition(":")[0]] += 1
        cut_off += sum(end == "length" for end in response.finish)
        answers += len(response.finish)
        prompt_tokens += response.prompt_tokens
        new_tokens += response.new_tokens
        items[question.key] = Item(
            key=question.key,
            question=question.conversation.question,
            target=question.target,
            texts=response.texts,
            finish=response.finish,
            error=response.error,
            scores=scores,
            group=question.group,
            categories=dict(question.categories),
        )
    published = benchmark.published
    computed = {name: metric.compute() for name, metric in metrics.items()}
    chance = benchmark.chance
    if chance is None and math.isfinite(of_metric := computed[benchmark.primary].chance):
        chance = of_metric
    primary = metrics[benchmark.primary]
    found = {
        "primary": benchmark.primary,
        "higher_is_better": primary.higher_is_better is not False,
        "heat_map": HeatMap.of(primary.grid()) if isinstance(primary, NeedleGrid) else None,
        "scores": {name: Score.of(value) for name, value in computed.items()},
        "by_category": {
            category: {
                value: Score.of(each[value].compute()) for value in sorted(each, key=natural)
            }
            for category, each in parts.items()
        },
        "chance": chance,
        "unanswered": dict(unanswered),
        "cut_off": cut_off / answers if answers else 0.0,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "published": published.scaled() if published else {},
        "published_source": published.source if published else "",
        "about": benchmark.about,
    }
    return found, list(items.values())


def natural(value: str) -> list[tuple[float, str]]:
    """A key by which 4 comes before 16, and 25% before 100%."""
    parts = re.split(r"(\d+(?:\.\d+)?)", value)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def _update(metric: ScoredMetric, texts: Sequence[str], question: Question) -> None:
    """Several samples of one question are no independent evidence."""
    group = question.group
    if len(texts) == 1:
        metric.update(texts[0], question.target, question.key, group)
        return
    for i, text in enumerate(texts):
        metric.update(text, question.target, f"{question.key}#{i}", group or question.key)


def _fresh(metric: ScoredMetric) -> ScoredMetric:
    """The same metric, before it has seen anything."""
    copy = metric.clone()
    assert isinstance(copy, ScoredMetric)
    copy.reset()
    return copy


def _item_score(alone: ScoredMetric, texts: Sequence[str], question: Question) -> ItemScore:
    """Of one question alone: the mean over its samples."""
    alone.reset()
    _update(alone, texts, question)
    found = alone.per_sample()
    value = float(np.mean(found.scores))
    return ItemScore(score=value if math.isfinite(value) else None, failed=bool(found.failed.all()))


def _questions(benchmark: Benchmark, chosen: Iterable[int]) -> Iterator[Question]:
    """One at a time: with their pictures they may be too many to hold."""
    return (benchmark.questions[i] for i in chosen)


class Stopwatch:
    """Seconds of work, over all attempts at it.

    Args:
        path: where the seconds of earlier attempts stand.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = float(path.read_text()) if path.is_file() else 0.0
        self._start = time.monotonic()

    def stop(self) -> None:
        """Add what has passed since the start, and write it down."""
        self.seconds += time.monotonic() - self._start
        self.path.write_text(f"{self.seconds:.3f}")
