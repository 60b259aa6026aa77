from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.evaluation.extract.choice import letter_or_text, option_text, stated_letter

OPTIONS = {"A": "a red cat", "B": "Paris", "C": "none of these", "D": "12"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b.", "B"),
        ("B. Paris", "B"),
        ("B: Paris", "B"),
        ("**B**", "B"),
        ("Ｂ", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is: (B) Paris", "B"),
        ("Answer: b", "B"),
        (r"so $\boxed{B}$", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("The answer is A. No: on reflection, the answer is B.", "B"),
        ("答案是B。", "B"),
        ("应选B", "B"),
        ("It shows the Eiffel tower, so option B is correct.", "B"),
        ("Looking at it, (B) fits.", "B"),
        ("Reasons.\n\nB", "B"),
        ("paris", "B"),
        ("The answer is Paris.", "B"),
        ("a red cat", "A"),
        ("A", "A"),
        ("The answer is A", "A"),
        # parse failures
        ("", None),
        ("A or B", None),
        ("A, B", None),
        ("A/B", None),
        ("A and B", None),
        ("The answer is A or B", None),
        ("Answer: (A) or (C)", None),
        ("(A) or (C), hard to say", None),
        ("I choose none", None),
        ("I think so", None),
        ("A dog stands there", None),
        ("The answer is a dog", None),
        ("The answer is A dog", None),
        ("E", None),
        ("The answer is E", None),
        ("Vitamin C is good for you", None),
        ("ABCD", None),
        ("Both are possible", None),
        ("The answer is not B", None),
        ("The answer is not (B).", None),
        ("It isn't (B)", None),
        ("(B) is wrong", None),
        ("B) isn't it", None),
        ("B. It is not here", "B"),
        ("I do not think option B is correct.", None),
        ("We can rule out (B)", None),
        ("This is not a cat. So (B) fits.", "B"),
        ("Answer: Definitely unclear", None),
        ("Bdog", None),
        ("12 cats and Paris", None),
    ],
)
def test_letters(text, letter):
    assert letter_or_text(text, OPTIONS) == letter


def test_i_is_a_pronoun_first():
    options = dict(zip("ABCDEFGHI", map(str, range(9)), strict=True))
    assert stated_letter("I choose none", options) is None
    assert stated_letter("I", options) == "I"
    assert stated_letter("The answer is I think B", options) is None


def test_equal_texts_name_no_option():
    assert option_text("dog", {"A": "dog", "B": "Dog."}) is None


@given(st.text(max_size=300))
def test_any_text_gives_an_option_or_none(text):
    assert letter_or_text(text, OPTIONS) in {*OPTIONS, None}


@given(st.text(alphabet="xyz \n.,()", max_size=60))
def test_text_without_letters_of_options_names_none(text):
    assert letter_or_text(text, OPTIONS) is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["A", "(A", "A or ", "\\boxed{", " ", "**", "answer is ", "1,"])
def test_huge_texts_are_read_in_linear_time(piece):
    letter_or_text(piece * 50_000, OPTIONS)
