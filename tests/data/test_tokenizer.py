"""The rebuilt Qwen3 tokenizer: golden ids, agreement with transformers, cuts, cache and errors."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from vlmkit.data import tokenizer as module
from vlmkit.data.tokenizer import (
    PLAIN_ADDED_TOKENS,
    SPECIAL_TOKENS,
    build_qwen_tokenizer,
    load_tokenizer,
    special_tokens_of,
)
from vlmkit.sequence import QWEN_RANKS, SpecialTokens, special_tokens

CUT = 4096

TEXTS = [
    "Hello, world! It's 2025-11-23, isn't it?\r\n\r\n  def f(x):\n\treturn x  ",
    "你好,世界。这是一个测试。 日本語のテキストと한국어 텍스트",
    "Übergrößenträger naïve café e\u0301 A\u030a \ufb01 ½ ²",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 \u200b\u00a0\u3000 \x00\x7f",
    "",
]

# Any character that is assigned, as the composition of others may change with the Unicode version.
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def full(cache_folder: Path) -> Tokenizer:
    return build_qwen_tokenizer()


@pytest.fixture(scope="module")
def cut(cache_folder: Path) -> Tokenizer:
    return build_qwen_tokenizer(CUT)


@pytest.fixture(scope="module")
def only_bytes(cache_folder: Path) -> Tokenizer:
    return build_qwen_tokenizer(256)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [9707, 11, 1879, 0]),
        ("<|im_start|>system\n", [151644, 8948, 198]),
        ("You are a helpful assistant.", [2610, 525, 264, 10950, 17847, 13]),
        ("<3.0 seconds>", [27, 18, 13, 15, 6486, 29]),
        ("你好,世界", [108386, 11, 99489]),
        ("assistant", [77091]),
        ("<|vision_start|><|image_pad|><|vision_end|>", [151652, 151655, 151653]),
        ("<think>\n</think>", [151667, 198, 151668]),
    ],
)
def test_published_ids(full: Tokenizer, text: str, ids: list[int]) -> None:
    assert full.encode(text).ids == ids


def test_added_tokens_follow_the_ranks_in_order(full: Tokenizer, cut: Tokenizer) -> None:
    added = SPECIAL_TOKENS + PLAIN_ADDED_TOKENS
    assert len(added) == 26
    assert full.get_vocab_size() == 151_669
    assert [full.token_to_id(name) for name in added] == list(range(QWEN_RANKS, 151_669))
    assert [cut.token_to_id(name) for name in added] == list(range(CUT, CUT + 26))


def test_only_special_tokens_vanish_from_decoded_text(full: Tokenizer) -> None:
    ids = full.encode("<|im_start|><think>a</think><|image_pad|><tool_call><|im_end|>").ids
    assert full.decode(ids) == "<think>a</think><tool_call>"


def test_special_tokens_of(full: Tokenizer, cut: Tokenizer) -> None:
    assert special_tokens_of(full) == SpecialTokens()
    assert special_tokens_of(cut) == special_tokens(CUT)


def test_special_tokens_of_names_the_absent_ones() -> None:
    other = Tokenizer(models.BPE(vocab={"a": 0, "<|im_start|>": 1}, merges=[]))
    with pytest.raises(ValueError, match=r"<\|image_pad\|>") as caught:
        special_tokens_of(other)
    assert "<|im_start|>" not in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(text=ANY_TEXT)
def test_round_trip(full: Tokenizer, cut: Tokenizer, only_bytes: Tokenizer, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    for tokenizer in (full, cut, only_bytes):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_smallest_cut_has_one_token_per_byte(only_bytes: Tokenizer, text: str) -> None:
    assert len(only_bytes.encode(text).ids) == len(unicodedata.normalize("NFC", text).encode())


def test_agrees_with_transformers(cut: Tokenizer) -> None:
    """Same vocabulary and merges in transformers' class, which brings its own splitter."""
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    added = set(SPECIAL_TOKENS + PLAIN_ADDED_TOKENS)
    vocab = {token: rank for token, rank in cut.get_vocab().items() if token not in added}
    merges = [tuple(pair) for pair in json.loads(cut.to_str())["model"]["merges"]]
    assert len(merges) == CUT - 256
    reference = qwen2.Qwen2Tokenizer(vocab=vocab, merges=merges)

    @settings(deadline=None, max_examples=200)
    @given(text=ANY_TEXT)
    def check(text: str) -> None:
        assume(not any(name in text for name in added))
        assert cut.encode(text).ids == reference.encode(text, add_special_tokens=False)

    for text in TEXTS:
        assert cut.encode(text).ids == reference.encode(text, add_special_tokens=False)
    check()


def test_a_cut_splits_longer_tokens_and_keeps_short_ones(full: Tokenizer, cut: Tokenizer) -> None:
    assert cut.encode(" the").ids == full.encode(" the").ids
    assert len(cut.encode(TEXTS[1]).ids) > len(full.encode(TEXTS[1]).ids)


@pytest.mark.parametrize("num_ranks", [0, 255, QWEN_RANKS + 1])
def test_num_ranks_out_of_range(num_ranks: int) -> None:
    with pytest.raises(ValueError, match=f"num_ranks is {num_ranks}"):
        build_qwen_tokenizer(num_ranks)


def test_cache_is_used_and_a_broken_one_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = build_qwen_tokenizer(300)
    (cached,) = (tmp_path / "vlmkit" / "tokenizer").iterdir()
    assert "300" in cached.name

    cached.write_text("{")
    assert build_qwen_tokenizer(300).to_str() == built.to_str()
    assert load_tokenizer(cached).to_str() == built.to_str()

    def never(ranks: list[bytes]) -> Tokenizer:
        raise AssertionError("built although it is cached")

    monkeypatch.setattr(module, "_tokenizer_from_ranks", never)
    assert build_qwen_tokenizer(300).to_str() == built.to_str()


def test_an_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    assert build_qwen_tokenizer(300).get_vocab_size() == 326


def test_a_changed_rank_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "qwen.tiktoken"
    changed.write_bytes(b"IQ== 0\r\n")
    monkeypatch.setattr(module, "asset_path", lambda *parts: changed)
    with pytest.raises(
        ValueError, match=r"qwen\.tiktoken has sha256 [0-9a-f]{64}, expected b2b1b8df"
    ):
        build_qwen_tokenizer()


def test_load_tokenizer(tmp_path: Path, cut: Tokenizer) -> None:
    file = tmp_path / "tokenizer.json"
    cut.save(str(file))
    assert load_tokenizer(file).to_str() == cut.to_str()
    assert load_tokenizer(tmp_path).to_str() == cut.to_str()


def test_load_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("not json")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)
