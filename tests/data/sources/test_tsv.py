"""Rows of TSV files, read at the place where they stand, with pictures that are fetched later."""

from __future__ import annotations

import base64
import csv
import io
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.data.sources import tsv
from vlmkit.data.sources.auto import open_table
from vlmkit.data.sources.tsv import TsvTable
from vlmkit.errors import ConfigError, MediaError, RecordError

PICTURE = bytes(range(256))
LONG = base64.b64encode(PICTURE).decode()
FIELD = st.text(alphabet=["a", '"', "\t", ",", "\n", "é", " "], max_size=6)


def write(folder, header, *rows, name="a.tsv", delimiter="\t"):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    path = folder / name
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(FIELD, FIELD, st.just("z")), min_size=1, max_size=5), st.sampled_from("\t,")
)
def test_rows_equal_those_of_the_csv_module(tmp_path_factory, rows, delimiter):
    path = write(tmp_path_factory.mktemp("t"), ["q", "w", "e"], *rows, delimiter=delimiter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsv, "_CHUNK", 3)
        table = TsvTable(path, delimiter=delimiter)
    found = [list(table[i].values()) for i in range(len(table))]
    assert found == [[field or None for field in row] for row in rows]


def test_lines_of_other_systems_and_loose_quotes(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b'\xef\xbb\xbfindex\tquestion\r\n1\ta 5" pipe\r\n\r\n2\t"two\r\nlines"\r\n3\t')
    table = open_table(path)
    assert [table[i] for i in range(3)] == [
        {"index": "1", "question": 'a 5" pipe'},
        {"index": "2", "question": "two\r\nlines"},
        {"index": "3", "question": None},
    ]
    assert [table.origin(i).rpartition(":")[2] for i in range(3)] == ["2", "4", "6"]
    with pytest.raises(IndexError):
        table[3]


def test_pictures_are_fetched_by_row_by_reference_and_from_lists(tmp_path):
    other = base64.b64encode(b"x" * 60).decode()
    rows = [("7", LONG), ("8", "7"), ("9", f"['{LONG}', '{other}']"), ("10", "9"), ("11", "")]
    table = TsvTable(write(tmp_path, ["index", "image"], *rows))
    assert [picture.read() for picture in table[0]["image"]] == [PICTURE]
    assert [picture.read() for picture in table[1]["image"]] == [PICTURE]
    for i in (2, 3):
        assert [picture.read() for picture in table[i]["image"]] == [PICTURE, b"x" * 60]
    assert table[4]["image"] is None
    assert LONG not in repr(table[0])
    (again,) = pickle.loads(pickle.dumps(table))[1]["image"]
    assert again.read() == PICTURE
    assert open_table(tmp_path / "a.tsv").fingerprint == table.fingerprint
    write(tmp_path, ["index", "image"], *rows[:-1])
    assert open_table(tmp_path / "a.tsv").fingerprint != table.fingerprint


def test_damage_is_named(tmp_path):
    path = write(tmp_path, ["index", "image"], ("1", "3"), ("2", LONG))
    with pytest.raises(ConfigError, match=r"a.tsv:2: image is '3', which is no picture"):
        TsvTable(path)
    write(tmp_path, ["index", "image"], ("1", "*" * 80))
    with pytest.raises(MediaError, match=r"a.tsv:2 image: it is not base64"):
        TsvTable(path)[0]["image"][0].read()
    path.write_text('index\tq\n1\t"never\n2\tends\n')
    with pytest.raises(ConfigError, match=r'a.tsv:2: a field opens with " here and never ends'):
        TsvTable(path)
    path.write_text("index\tq\n1\ta\tb\n")
    with pytest.raises(RecordError, match=r"a.tsv:2: the row has 3 fields and the header 2"):
        TsvTable(path)[0]
    path.write_bytes(b"index\tq\n1\t\xff\n")
    with pytest.raises(RecordError, match=r"a.tsv:2: byte 2 of the row is not UTF-8"):
        TsvTable(path)[0]
    path.write_text("")
    with pytest.raises(ConfigError, match="has no header"):
        TsvTable(path)
