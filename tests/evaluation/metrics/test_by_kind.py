"""Questions of several kinds, parts that count alike, and the metrics that public benchmarks add."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit.evaluation.extract.blocks import Block
from vlmkit.evaluation.math_equality import MathEquality, Verdict
from vlmkit.evaluation.metrics.by_kind import ByKind, Kinded
from vlmkit.evaluation.metrics.math_or_text import MathOrText
from vlmkit.evaluation.metrics.multiple_choice import Choice, MultipleChoice
from vlmkit.evaluation.metrics.page_edit import PageEditDistance
from vlmkit.evaluation.metrics.relative_accuracy import MeanRelativeAccuracy

CHOICE = Choice.of("B", ["left", "right"])


def mixed() -> ByKind:
    return ByKind({"choice": MultipleChoice(), "number": MeanRelativeAccuracy()})


def test_by_hand():
    metric = mixed()
    for key, (text, target) in enumerate([
        ("B", Kinded("choice", CHOICE, "where")),
        ("A", Kinded("choice", CHOICE, "where")),
        ("A or B", Kinded("choice", CHOICE, "where")),
        ("about 4 m", Kinded("number", 4.0, "how far")),
    ]):  # fmt: skip
        metric.update(text, target, key)
    found = metric.compute()
    assert found.value == pytest.approx((1 / 3 + 1) / 2)
    assert found.parts["score"].value == pytest.approx(2 / 4)
    assert found.parse_failure_rate == 0.25
    assert found.low < found.value < found.high


def test_intervals_equal_those_of_resampled_tables():
    """Means over parts are no means over samples: resample by hand, questions and all."""
    metric = mixed()
    rng = np.random.default_rng(0)
    scores, parts = rng.integers(0, 2, 40), rng.choice(["a", "b", "c"], 40, p=[0.6, 0.3, 0.1])
    for key, (score, part) in enumerate(zip(scores, parts, strict=True)):
        metric.update("B" if score else "A", Kinded("choice", CHOICE, str(part)), key)
    found = metric.compute()
    drawn = []
    for _ in range(4000):
        at = rng.integers(0, 40, 40)
        drawn.append(np.mean([scores[at][parts[at] == p].mean() for p in set(parts[at])]))
    # measured 0.006; of 4,000 draws each end is sure to about 0.01
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=0.03
    )


def test_a_kind_without_a_metric_is_named():
    with pytest.raises(
        ValueError, match=r"no metric for 'points', only for \['choice', 'number'\]"
    ):
        mixed().update("B", Kinded("points", CHOICE), 0)


@pytest.mark.parametrize(
    ("said", "share"),
    [("10", 1.0), ("10.5", 1.0), ("11", 0.9), ("9", 0.9), ("14", 0.3), ("15", 0.1), ("16", 0.0)],
)
def test_relative_accuracy_by_hand(said, share):
    """Share of the thresholds 0.5, 0.55, ..., 0.95 with an error of at most 1 - t."""
    assert MeanRelativeAccuracy().score(f"It is {said} m.", 10.0) == [pytest.approx(share)]


def test_relative_accuracy_of_nothing():
    assert MeanRelativeAccuracy().scored("no idea", 10.0) == ([0.0], True)
    with pytest.raises(ValueError, match="other than 0"):
        MeanRelativeAccuracy().update("3", 0.0, 0)


def test_words_are_compared_as_words(monkeypatch):
    verdicts = {"$2$": Verdict.EQUAL, "Tuesday": Verdict.BAD_TRUTH}
    monkeypatch.setattr(MathEquality, "__call__", lambda self, said, gold: verdicts[gold])
    metric = MathOrText()
    assert metric.score("The answer is tuesday.", "Tuesday") == [1.0]
    assert metric.score("It is not Tuesday", "Tuesday") == [0.0]
    assert metric.score(r"\boxed{2}", "2") == [1.0]


def test_less_is_better_for_pages():
    page = [Block("text", "Of hats"), Block("formula", "x")]
    metric = PageEditDistance()
    metric.update("Of hats\n\n$$x$$", page, 0)
    metric.update("", page, 1)
    found = metric.compute()
    assert found.value == pytest.approx(found.parts["overall_edit"].value)
    assert 0 < found.value < 1
    assert metric.per_sample().scores.tolist() == [0.0, 1.0]
