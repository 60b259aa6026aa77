from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import edit_distance

from vlmkit.evaluation.metrics import short_answer
from vlmkit.evaluation.metrics.short_answer import (
    ANLS,
    Containment,
    HarnessANLS,
    LenientRelaxedAccuracy,
    MmmuOpen,
    RelaxedAccuracy,
    ShortAnswer,
    StatedMatch,
)

EVERY = (
    *(ANLS(), HarnessANLS(), RelaxedAccuracy(), LenientRelaxedAccuracy()),
    *(StatedMatch(), MmmuOpen(), Containment()),
)


def score(metric: ShortAnswer, text: str, target) -> float:
    return metric.scored(text, target)[0][0]


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_anls_is_the_edit_distance_of_torchmetrics(said, answer):
    a, b = (" ".join(x.lower().split()) for x in (said, answer))
    distance = float(edit_distance([a], [b], reduction="none")[0])
    normalised = distance / max(len(a), len(b), 1)
    expected = 1 - normalised if normalised < 0.5 else 0
    assert ANLS().credit(said, answer) == pytest.approx(expected, abs=1e-6)
    longest = max(len(said.upper()), len(answer.upper()))
    similarity = 1 - distance / longest
    expected = similarity if similarity >= 0.5 else 0
    assert HarnessANLS().credit(said, answer) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("said", "answers", "anls", "harness"),
    [
        ("Paris ", ["paris"], 1, 1),
        ("Pari", ["Paris"], 0.8, 0.8),
        ("ab", ["ax"], 0, 0.5),  # at the threshold
        ("a   b", ["a c"], 2 / 3, 0.8),  # white space in the denominator
        ("London", ["Paris", "london"], 1, 1),
        ("", ["Paris"], 0, 0),
        ("Rome", ["1923"], 0, 0),
    ],
)
def test_anls_by_hand(said, answers, anls, harness):
    assert score(ANLS(), said, answers) == pytest.approx(anls)
    assert score(HarnessANLS(), said, answers) == pytest.approx(harness)


@pytest.mark.parametrize(
    ("said", "answer", "public", "lenient"),
    [
        ("105", "100", 1, 1),
        ("105.01", "100", 0, 0),
        ("-95", "-100", 1, 1),
        ("42%", "42%", 1, 1),
        ("0.42", "42%", 1, 1),
        ("42", "42%", 0, 1),
        ("42%", "42", 0, 1),
        ("0.0", "0", 0, 1),
        ("0", "0", 1, 1),
        ("0.01", "0", 0, 0),
        ("1,200", "1200", 0, 1),
        ("$1,200", "1200", 0, 1),
        ("٤٢", "42", 1, 1),
        ("Yes", "yes", 1, 1),
        ("nan", "5", 0, 0),
        ("inf", "5", 0, 0),
        ("1e999", "5", 0, 0),
        ("The answer is 42.", "42", 0, 1),
        ("5 or 6", "5", 0, 0),
        ("", "5", 0, 0),
    ],
)
def test_relaxed_accuracy_by_hand(said, answer, public, lenient):
    assert score(RelaxedAccuracy(), said, answer) == public
    assert score(LenientRelaxedAccuracy(), said, answer) == lenient


def test_exact_match_and_containment():
    assert score(StatedMatch(), "The answer is Foo.", "foo") == 1
    assert score(StatedMatch(), "fo", "foo") == 0
    assert score(Containment(), "It reads STOP\nHERE", "stop here") == 1
    assert score(Containment(without_spaces=True), "x ^ 2", "x^2") == 1
    assert score(Containment(without_spaces=True), "X^2", "x^2") == 0
    assert score(Containment(), "anything", "") == 0


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [  # worked by hand from the published rule
        ("The answer is 3.14159", "3.14", 1),
        ("x = 1,200", "1200", 1),
        ("so it is blue\nfinal answer red whale", "red", 1),
        ("so it is blue\nfinal answer red", "green", 0),
        ("b", "b", 1),
        ("ab", "b", 0),  # one letter needs a space beside it
        ("it is b c", "b", 1),
        ("2e3", "2000", 1),
        ("nothing", ["a thing", "nothing"], 1),
    ],
)
def test_mmmu_open(text, answer, right):
    assert score(MmmuOpen(), text, answer) == right


@given(st.text(max_size=200), st.text(min_size=1, max_size=20))
def test_nothing_crashes_and_scores_stay_in_bounds(text, answer):
    for metric in EVERY:
        assert 0 <= score(metric, text, answer) <= 1


@given(st.text(alphabet="0123456789.,-eE+ x", max_size=30))
def test_mmmu_numbers_are_those_of_the_published_patterns(text):
    published = (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
    for ours, theirs in zip(short_answer._MMMU_NUMBERS, published, strict=True):
        assert ours.findall(text) == re.findall(theirs, text)


def test_a_sample_without_answers_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ANLS().update("x", [], 1)
