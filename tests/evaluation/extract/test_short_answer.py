from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.evaluation.extract.final_answer import final_answer
from vlmkit.evaluation.extract.short_answer import (
    boxed,
    count,
    number,
    stated,
    stated_or_whole,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>5</think> 6", "6"),
        ("5</think>6<|im_end|>", "6"),
        ("<think>5", None),
        ("<think>5</think>", None),
        ("a</think>b<think>c", None),
        (" \n", None),
        ("6", "6"),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{}", None),
        ("1", None),
    ],
)
def test_boxed(text, answer):
    assert boxed(text) == answer


def test_stated():
    assert stated("The final answer is: **42**.\nBye") == "42"
    assert stated("Answer: 1\nAnswer: 2") == "2"
    assert stated("it is 42") is None
    assert stated_or_whole(" it is 42 ") == "it is 42"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("**No**, there is no cat.", "no"),
        ("Yes, there is no doubt.", "yes"),
        ("Hmm.\nYes.", "yes"),
        ("The answer is no.", "no"),
        ("是", "yes"),
        ("不是", "no"),
        ("yes and no", None),
        ("Yes/No", None),
        ("There is no doubt that a cat is here.", None),
        ("I do not know", None),
        ("No idea.", None),
        ("No answer", None),
        ("Not sure, yes?", None),
        ("No one is there.", "no"),
        ("nothing", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_yes_or_no(text, answer):
    assert yes_or_no(text) == answer


@pytest.mark.parametrize(
    ("text", "counted", "read"),
    [
        ("7", 7, 7),
        ("There are seven dogs.", 7, None),
        ("There are 1,200 dogs.", 1200, 1200),
        ("２３", 23, 23),
        ("٢٣", 23, 23),
        ("2 or 3", None, 3),
        ("3 dogs, that is three", 3, 3),
        ("2.5", None, 2.5),
        ("The answer is 4, not 5", None, 5),
        ("The answer is 4", 4, 4),
        ("I counted 3 and 2. The answer is 5.", 5, 5),
        ("-3e2", -300, -300),
        ("1e400", None, None),
        ("nan", None, None),
        ("none", None, None),
        ("x7", None, None),
        ("7" * 400, None, None),
    ],
)
def test_numbers(text, counted, read):
    assert count(text) == counted
    assert number(text) == read


@given(st.text(max_size=300))
def test_no_text_crashes(text):
    for extract in (final_answer, boxed, stated, yes_or_no, count, number):
        extract(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece", ["answer ", "\\boxed{", "1,", "111,", "7", "yes ", " ", "no or ", "<think>", "\n"]
)
def test_huge_texts_are_read_in_linear_time(piece):
    for extract in (final_answer, boxed, stated, yes_or_no, count, number):
        extract(piece * 50_000)
