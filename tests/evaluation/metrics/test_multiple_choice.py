from __future__ import annotations

import pytest

from vlmkit.evaluation.metrics.multiple_choice import Choice, CircularChoice, MultipleChoice


def test_a_hand_worked_table():
    metric = MultipleChoice()
    metric.update("The answer is (B).", Choice.of("B", ["cat", "dog"]), 1)
    metric.update("dog", Choice.of("B", ["cat", "dog"]), 2)
    metric.update("A or B", Choice.of("B", ["cat", "dog"]), 3)
    metric.update("A", Choice.of({"B", "C"}, ["cat", "dog", "cow", "hen"]), 4)
    result = metric.compute()
    assert result.value == 0.5
    assert result.parse_failure_rate == 0.25
    assert result.chance == pytest.approx(0.5)


def test_an_answer_that_is_no_option_is_the_mistake_of_the_set():
    with pytest.raises(ValueError, match=r"\['C'\] is not among"):
        MultipleChoice().update("A", Choice.of("C", ["cat", "dog"]), 1)


def test_circular_counts_a_question_once_and_only_when_all_are_right():
    metric = CircularChoice()
    given = {"q0": "AAAA", "q1": "BABA", "q2": "AA"}  # A is always right
    for question, letters in given.items():
        for i, letter in enumerate(letters):
            target = Choice.of("A", ["x", "y", "z", "w"][: len(letters)])
            metric.update(letter, target, f"{question}/{i}", group=question)
    result = metric.compute()
    assert result.value == pytest.approx(2 / 3)
    assert result.parts["single"].value == pytest.approx(8 / 10)
    assert (result.n, result.clusters) == (10, 3)
    assert result.chance == pytest.approx((2 * 0.25**4 + 0.5**2) / 3)
