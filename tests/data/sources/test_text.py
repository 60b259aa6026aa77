"""Documents of text files, and that cutting them loses nothing."""

from __future__ import annotations

import pickle
from itertools import count, groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.data.sources.text import BLANK_LINES, TextTable
from vlmkit.errors import ConfigError

WORDS = st.sampled_from(
    [
        "a",
        "word",
        "日本語",
        "é",
        "😀",
        ". ",
        "! ",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\n\n",
        "\n \n",
        "\r",
        "\ufeff",
    ]
)
TEXTS = st.lists(WORDS, max_size=40).map("".join)


def documents(table) -> list[str]:
    rows = [table[i] for i in range(len(table))]
    return [
        "".join(row["text"] for row in group)
        for _, group in groupby(rows, key=lambda row: (row["file"], row["document"]))
    ]


@pytest.fixture(scope="module")
def new_path(tmp_path_factory):
    """A name that was not used before: clocks of files are coarser than these tests are quick."""
    folder, numbers = tmp_path_factory.mktemp("text"), count()
    return lambda: folder / f"{next(numbers)}.txt"


@settings(deadline=None)
@given(text=TEXTS, max_chars=st.integers(1, 12), bom=st.booleans())
def test_the_pieces_of_a_file_are_the_file(new_path, text, max_chars, bom):
    path = new_path()
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    if not bom:
        text = text.removeprefix("\ufeff")
    table = TextTable(path, max_chars=max_chars)
    assert documents(table) == ([text] if text.encode().strip() else [])
    assert all(0 < len(table[i]["text"]) <= max_chars for i in range(len(table)))


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), max_chars=st.none() | st.integers(1, 12))
def test_the_pieces_of_documents_are_the_documents(new_path, texts, max_chars):
    path = new_path()
    path.write_bytes("<end>".join(texts).encode())
    if texts:
        texts[0] = texts[0].removeprefix("\ufeff")
    table = TextTable(path, separator="<end>", max_chars=max_chars)
    assert documents(table) == [text for text in texts if text.encode().strip()]


def test_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n\n \nthree\r\n\r\nfour")
    table = TextTable(path, separator=BLANK_LINES)
    assert documents(table) == ["one\ntwo", "three", "four"]
    assert [table[i]["document"] for i in range(3)] == [0, 1, 2]
    assert table.origin(2) == f"{path}:3"
    assert pickle.loads(pickle.dumps(table))[1]["text"] == "three"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two\n\nthree four five", ["one two\n\n", "three four ", "five"]),
        ("one two\nthree four five", ["one two\n", "three four ", "five"]),
        ("One two. Three four five", ["One two. ", "Three four ", "five"]),
        ("a" * 30, ["a" * 12, "a" * 12, "a" * 6]),
        ("a\n\n" + "b" * 20, ["a\n\n" + "b" * 9, "b" * 11]),  # not into tiny pieces
    ],
)
def test_where_documents_are_cut(tmp_path, text, pieces):
    (tmp_path / "a.txt").write_text(text)
    table = TextTable(tmp_path / "a.txt", max_chars=12)
    assert [table[i]["text"] for i in range(len(table))] == pieces


def test_files_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "a.txt"
    for content, place in ((b"abc\xffd" * 9, 3), (b"a" * 7 + "é".encode()[:1], 7)):
        path.write_bytes(content)
        for max_chars in (None, 2):
            with pytest.raises(ConfigError, match=rf"a.txt: byte {place} is not UTF-8; .*iconv"):
                TextTable(path, max_chars=max_chars)


def test_options(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello")
    assert TextTable(path).fingerprint == TextTable(path).fingerprint
    assert TextTable(path).fingerprint != TextTable(path, max_chars=3).fingerprint
    for wrong in ({"separator": ""}, {"max_chars": 0}):
        with pytest.raises(ConfigError, match=r"give a text and a positive number"):
            TextTable(path, **wrong)
