"""Text that grows by tokens, against decoding the whole at once."""

import random

import pytest

from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.models.generation.text import GrowingText

WORDS = "Grüße aus Zürich, 你好世界 👩‍👩‍👧 ok\n\n 答案: 42 — «fin»"


@pytest.fixture(scope="module")
def tokenizer():
    return build_qwen_tokenizer(998)  # few merges: most characters beyond ASCII take several tokens


def fed(tokenizer, ids, stop=()):
    """Pieces as they are released, and the text."""
    growing, pieces = GrowingText(tokenizer, stop), []
    for token in ids:
        stopped = growing.add(token)
        pieces.append(growing.release())
        if stopped:
            break
    growing.close()
    pieces.append(growing.release())
    return pieces, growing


def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer):
    ids = tokenizer.encode(WORDS).ids
    pieces, growing = fed(tokenizer, ids)
    assert "".join(pieces) == growing.text == WORDS
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "" in pieces  # something was held back


def test_any_tokens_decode_as_at_once(tokenizer):
    draw = random.Random(0)
    size = tokenizer.get_vocab_size()
    for _ in range(200):
        ids = [draw.randrange(size) for _ in range(draw.randrange(1, 40))]
        pieces, growing = fed(tokenizer, ids)
        assert growing.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(pieces) == growing.text


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (["世界"], WORDS[: WORDS.index("世界")]),  # within a run of tokens of one character
        (["👧", "Zürich"], "Grüße aus "),
        (["h, 你"], "Grüße aus Züric"),  # over token borders
        (["nowhere", "\n\n"], WORDS[: WORDS.index("\n")]),
        (["«fin»"], WORDS[:-5]),
        (["ok", "ok\n"], WORDS[: WORDS.index("ok")]),
        (["nowhere"], WORDS),
    ],
)
def test_text_ends_before_the_first_stop_string(tokenizer, stop, kept):
    ids = tokenizer.encode(WORDS).ids
    pieces, growing = fed(tokenizer, ids, stop)
    assert growing.text == kept
    assert "".join(pieces) == kept  # what was released is never taken back
    assert (growing.stopped_by is None) == (kept == WORDS)
    assert growing.stopped_by in (*stop, None)


def test_random_stop_strings_equal_a_search_in_the_whole(tokenizer):
    draw = random.Random(1)
    for _ in range(300):
        words = "".join(draw.choice("abé世 ") for _ in range(30))
        stop = ["".join(draw.choice("abé世 ") for _ in range(draw.randrange(1, 5))) for _ in "xy"]
        pieces, growing = fed(tokenizer, tokenizer.encode(words).ids, stop)
        ends = [words.find(one) for one in stop if one in words]
        # the one that is complete first ends the answer, so a longer one may have begun before
        complete = min(
            (words.find(one) + len(one) for one in stop if one in words), default=len(words)
        )
        assert growing.text in {words[:end] for end in [*ends, len(words)]}
        assert len(growing.text) <= complete
        assert not any(one in growing.text for one in stop)
        assert "".join(pieces) == growing.text


def test_what_may_become_a_stop_string_waits(tokenizer):
    growing = GrowingText(tokenizer, ["END!"])
    released = []
    for token in tokenizer.encode("the END? the EN").ids:
        growing.add(token)
        released.append(growing.release())
        assert not "".join(released).endswith(("E", "EN", "END"))
    growing.close()
    assert growing.release() == "EN"


def test_special_tokens_are_no_text(tokenizer):
    ids = [*tokenizer.encode("a").ids, tokenizer.token_to_id("<|im_end|>")]
    assert fed(tokenizer, ids)[1].text == "a"
    assert fed(tokenizer, ids, ["<|im_end|>"])[1].stopped_by is None
