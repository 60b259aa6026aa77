"""Every token can be read, whatever it cuts through."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.inspection.tokens import Vocabulary, visible, visible_text

TOKENIZER = build_qwen_tokenizer(998)
VOCABULARY = Vocabulary(TOKENIZER)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_comes_back(text):
    """The tokenizer normalises to NFC; everything else survives."""
    ids = encode(text)
    assert VOCABULARY.text(ids) == TOKENIZER.decode(ids, skip_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30))
def test_any_tokens_are_grouped_without_loss(ids):
    groups = list(VOCABULARY.split(ids))
    assert [place for g in groups for place in range(g.first, g.first + g.count)] == [
        *range(len(ids))
    ]
    for group in groups:
        content = b"".join(VOCABULARY.content(i) for i in ids[group.first :][: group.count])
        if group.text is not None:
            assert group.text.encode() == content
        if group.is_special:
            assert group.count == 1


def test_a_cut_character_is_one_group():
    ids = encode("a 猫!")
    assert len(ids) > 4  # the small vocabulary has no such piece
    texts = [group.text for group in VOCABULARY.split(ids)]
    assert "猫" in "".join(text or "?" for text in texts)
    assert None not in texts


def test_bytes_that_are_no_text_are_named():
    (lone,) = [i for i in range(256) if VOCABULARY.content(i) == b"\xe7"]
    special = TOKENIZER.token_to_id("<|im_end|>")
    groups = list(VOCABULARY.split([lone, special, lone, *encode("ab")]))
    assert [(g.text, g.is_special) for g in groups][:3] == [
        (None, False),
        ("<|im_end|>", True),
        (None, False),
    ]
    assert VOCABULARY.shown(lone) == "E7"
    assert VOCABULARY.text([lone, special]) == "E7<|im_end|>"


def test_an_id_without_a_token_says_so():
    assert VOCABULARY.shown(10**6) == "[no·token·1000000]"


@pytest.mark.parametrize(
    ("char", "shown"),
    [
        (" ", "·"),
        ("\n", "↵"),
        ("\t", "⇥"),
        ("\x1b", "␛"),
        ("\x7f", "␡"),
        ("\u202e", "[U+202E]"),  # would turn the rest of the line round
        ("\u200b", "[U+200B]"),
        ("\u00a0", "[U+00A0]"),
        ("é", "é"),
        ("猫", "猫"),
    ],
)
def test_what_cannot_be_seen_gets_a_sign(char, shown):
    assert visible(char) == shown
    assert visible_text(f"a {char}") == "a " + (" " if char == " " else shown)
