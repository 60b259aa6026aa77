from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.evaluation.metrics.vqa import VqaAccuracy, vqa_normal


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog.", "dog"),
        ("two", "2"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("couldntve", "couldn't've"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("a \n b?", "b"),
        ("None", "0"),
        ("t-shirt", "t shirt"),
    ],
)
def test_normal_forms(answer, normal):
    assert vqa_normal(answer) == normal


@pytest.mark.parametrize(
    ("matches", "expected"),
    [  # leave one out over ten people: the mean of min(1, (matches - own) / 3)
        (0, 0),
        (1, (9 * 1 / 3 + 0) / 10),
        (2, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        (3, (7 + 3 * 2 / 3) / 10),
        (4, 1),
        (10, 1),
    ],
)
def test_leave_one_out_by_hand(matches, expected):
    people = ["Cat."] * matches + [f"other {i}" for i in range(10 - matches)]
    assert VqaAccuracy().scored("the cat", people)[0][0] == pytest.approx(expected)


def test_bad_truths_and_empty_answers():
    assert VqaAccuracy().scored("", ["x"] * 10) == ([0], True)
    assert VqaAccuracy().scored("x", ["x"]) == ([1], False)
    for target in ("x", []):
        with pytest.raises(ValueError, match="several people"):
            VqaAccuracy().update("x", target, 1)


@given(st.text(max_size=50), st.lists(st.text(max_size=9), min_size=1, max_size=10))
def test_scores_stay_in_bounds(text, people):
    assert 0 <= VqaAccuracy().scored(text, people)[0][0] <= 1
