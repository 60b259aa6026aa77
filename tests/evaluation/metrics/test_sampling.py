from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from vlmkit.evaluation.metrics.sampling import PassAtK, pass_at_k
from vlmkit.evaluation.metrics.short_answer import StatedMatch


@pytest.mark.parametrize(("n", "correct"), [(6, 0), (6, 1), (6, 4), (6, 6), (5, 2)])
def test_pass_at_k_is_the_share_of_all_draws(n, correct):
    right = [i < correct for i in range(n)]
    for k in range(1, n + 1):
        draws = [any(right[i] for i in draw) for draw in combinations(range(n), k)]
        assert pass_at_k(n, correct, k) == pytest.approx(np.mean(draws))


def test_a_hand_worked_table():
    metric = PassAtK(StatedMatch(), ks=(1, 2))
    given = {  # all truths are "a"
        "p": ["a", "A", "The answer is b", "<think>"],  # 2 of 4 right; a wins 2 : 1
        "q": ["b", "a", "c", "c"],  # c wins
        "r": ["a", "b", "a", "b"],  # a draw: half
    }
    for problem, texts in given.items():
        for i, text in enumerate(texts):
            metric.update(text, "a", f"{problem}/{i}", group=problem)
    result = metric.compute()
    values = {name: part.value for name, part in result.parts.items()}
    assert values["pass@1"] == pytest.approx((2 + 1 + 2) / 12)
    assert values["pass@2"] == pytest.approx(np.mean([5 / 6, 1 / 2, 5 / 6]))
    assert values["majority"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert values["consistency"] == pytest.approx((1 + 1 + 2) / 18)
    assert result.parse_failure_rate == pytest.approx(1 / 12)
    assert result.clusters == 3


def test_too_few_samples_are_refused():
    metric = PassAtK(StatedMatch(), ks=(2,))
    metric.update("a", "a", 1, group="p")
    with pytest.raises(ValueError, match="fewer than pass@2"):
        metric.compute()
