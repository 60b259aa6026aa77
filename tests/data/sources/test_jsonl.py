"""Rows of JSON files, read at the place where they stand."""

from __future__ import annotations

import json
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.sources.writers import TEXT, write_lines
from vlmkit.data.sources import json_index
from vlmkit.data.sources.cache import cache_folder
from vlmkit.data.sources.files import DataFile
from vlmkit.data.sources.json_index import scan_lines, scan_list
from vlmkit.data.sources.jsonl import JsonlTable
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import ConfigError, RecordError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=6)
GAPS = st.sampled_from(["", "", "\n", "\r\n", "  \n", "\t\r\n"])


def scanned(scan, content: bytes, chunk: int):
    """Rows by a scan that reads few bytes at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_index, "_CHUNK", chunk)
        file = DataFile(path=None, name="f", size=len(content), mtime_ns=0)  # type: ignore[arg-type]
        index = scan(lambda at, size: content[at : at + size], file, FileProgress("", 1))
    rows = [content[a:b] for a, b in zip(index.start, index.stop, strict=True)]
    return [json.loads(row) for row in rows], index.line.tolist()


@given(ROWS, st.data(), st.integers(1, 40), st.booleans())
def test_lines_of_any_kind_are_found(rows, data, chunk, ends):
    text, lines, at = "", [], 0
    for row in rows:
        gap = data.draw(GAPS)
        at += gap.count("\n")
        line = json.dumps(row, ensure_ascii=False)
        text += gap + line + data.draw(st.sampled_from(["\n", "\r\n"]))
        at += 1
        lines.append(at)
    content = text.encode() if ends else text.rstrip("\r\n").encode()
    assert scanned(scan_lines, content, chunk) == (rows, lines)


@given(ROWS, st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_elements_of_a_list_are_found(rows, chunk, indent, bom):
    content = json.dumps(rows, ensure_ascii=False, indent=indent).encode() + b" \n"
    content = b"\xef\xbb\xbf" * bom + content
    assert scanned(scan_list, content, chunk) == (rows, list(range(1, len(rows) + 1)))


def test_numbers_are_not_cut_where_reading_stops():
    for chunk in range(1, 12):
        assert scanned(scan_list, b"[123, 4567,89]", chunk)[0] == [123, 4567, 89]


@pytest.mark.parametrize(
    "content", [b"[{}", b"[{},]", b"[{} {}]", b"[{}]x", b'[{"a]', b"[", b"[tru]"]
)
@pytest.mark.parametrize("chunk", [1, 100])
def test_damaged_lists_are_refused(content, chunk):
    with pytest.raises(ConfigError, match=r"not a JSON list of objects: .* at byte .*jsonl"):
        scanned(scan_list, content, chunk)


def test_rows_of_several_files(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", [{"i": 0}, {"i": 1}])
    second = tmp_path / "b.json"
    second.write_text(json.dumps([{"i": 2}, {"i": 3, "text": "日本\n"}]))
    third = tmp_path / "c.json"  # lines in spite of its name, as many are
    third.write_text('\n{"i": 4}\n')
    empty = tmp_path / "d.jsonl"
    empty.write_text("")
    table = JsonlTable([first, second, empty, third])
    assert [table[i]["i"] for i in range(len(table))] == [0, 1, 2, 3, 4]
    origins = [os.path.basename(table.origin(i)) for i in range(5)]
    assert origins == ["a.jsonl:1", "a.jsonl:2", "b.json:1", "b.json:2", "c.json:2"]
    assert table[3]["text"] == "日本\n"
    for index in (-1, 5):
        with pytest.raises(IndexError):
            table[index]


def test_a_huge_line(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"x": "é" * 20_000_000}, {"x": 1}])
    table = JsonlTable(path)
    assert len(table[0]["x"]) == 20_000_000
    assert table[1] == {"x": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1', "not JSON .*one whole JSON object on one line"),
        (b"[1]", "the row is a list, not an object"),
        (b'{"a": "\xff"}', "byte 7 of the row is not UTF-8; save"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_damaged_rows_name_their_line(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"fine": 1}\n\n' + line + b'\n{"fine": 2}\n')
    table = JsonlTable(path)
    assert (table[0], table[2]) == ({"fine": 1}, {"fine": 2})
    with pytest.raises(RecordError, match=f"a.jsonl:3: {words}"):
        table[1]


def test_the_index_is_used_again_until_the_file_changes(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"i": 0}, {"i": 1}])
    before = JsonlTable(path)
    cached_files = sorted(cache_folder("lines-1").iterdir())
    assert JsonlTable(path).fingerprint == before.fingerprint
    assert sorted(cache_folder("lines-1").iterdir()) == cached_files
    write_lines(path, [{"i": 5}, {"i": 6}])  # of the same size
    os.utime(path, ns=(1, 1))
    after = JsonlTable(path)
    assert [after[i]["i"] for i in range(2)] == [5, 6]
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_ignores_folders_and_times(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "a.jsonl", tmp_path / "other" / "a.jsonl"]
    for time, path in enumerate(paths):
        write_lines(path, [{"i": 0}])
        os.utime(path, ns=(time, time))
    assert JsonlTable(paths[0]).fingerprint == JsonlTable(paths[1]).fingerprint


def test_a_copy_in_another_process_survives_an_emptied_cache(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"i": i} for i in range(3)])
    table = JsonlTable(path)
    assert table[2] == {"i": 2}
    packed = pickle.dumps(table)
    assert len(packed) < 2000
    for file in cache_folder("lines-1").iterdir():
        file.unlink()
    assert pickle.loads(packed)[2] == {"i": 2}
