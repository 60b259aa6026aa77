"""Rows of Parquet files, read in place or from an uncompressed copy."""

from __future__ import annotations

import os
import pickle
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.sources.writers import TEXT, png
from vlmkit.data.sources import parquet
from vlmkit.data.sources.cache import cache_folder
from vlmkit.data.sources.parquet import ParquetTable
from vlmkit.errors import ConfigError

ROWS = [
    {
        "id": i,
        "text": f"ä {i}" if i % 3 else None,
        "image": {"bytes": png() * (i % 4), "path": f"{i}.png"},
        "turns": [{"role": "user", "content": str(n)} for n in range(i % 3)],
    }
    for i in range(50)
]
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "text": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "turns": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    }
)


@pytest.fixture
def path(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), tmp_path / "a.parquet", row_group_size=8)
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("direct_bytes", [0, 1 << 30])
def test_rows_in_any_order(path, direct_bytes):
    table = ParquetTable(path, direct_bytes=direct_bytes)
    order = random.Random(0).sample(range(50), 50)
    assert [table[i] for i in order] == [ROWS[i] for i in order]
    assert len(table) == 50
    assert table.origin(7).endswith("a.parquet:8")
    with pytest.raises(IndexError):
        table[50]
    assert pickle.loads(pickle.dumps(table))[9] == ROWS[9]


@given(st.lists(st.tuples(TEXT, st.integers(-9, 9)), min_size=1), st.integers(1, 5), st.booleans())
def test_any_rows_come_back(tmp_path_factory, pairs, group, direct):
    rows = [{"a": a, "b": [b] * (b % 3)} for a, b in pairs]
    path = tmp_path_factory.mktemp("p") / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    table = ParquetTable(path, direct_bytes=direct * 10**9)
    assert [table[i] for i in range(len(table))] == rows


def test_small_and_large_files_together(tmp_path, path, caplog):
    small = tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": [100, 101]}), small)
    size = pq.read_metadata(small).row_group(0).total_byte_size
    with caplog.at_level("INFO"):
        table = ParquetTable([small, path], direct_bytes=size)
    assert "1 of 2 Parquet files have large row groups" in caplog.text
    assert [table[i]["id"] for i in (0, 1, 2, 51)] == [100, 101, 0, 49]


@pytest.mark.parametrize("direct_bytes", [0, 1 << 30])
def test_columns(path, direct_bytes):
    table = ParquetTable(path, columns=["turns", "id"], direct_bytes=direct_bytes)
    assert table[4] == {key: ROWS[4][key] for key in ("id", "turns")}
    assert table.fingerprint != ParquetTable(path).fingerprint
    with pytest.raises(ConfigError, match=r"no column txt: did you mean text\?"):
        ParquetTable(path, columns=["txt"])


def test_dictionaries_become_what_they_stand_for(tmp_path):
    values = pa.array(["a", "b", "a", None]).dictionary_encode()
    pq.write_table(pa.table({"x": values}), tmp_path / "d.parquet", row_group_size=1)
    table = ParquetTable(tmp_path / "d.parquet", direct_bytes=0)
    assert [table[i]["x"] for i in range(4)] == ["a", "b", "a", None]


def test_the_copy_is_used_until_the_file_changes(path):
    ParquetTable(path, direct_bytes=0)
    folder = cache_folder("parquet-1-" + parquet.short_hash(None))
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    before = ParquetTable(path, direct_bytes=0).fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == times
    pq.write_table(pa.table({"id": [7]}), path)
    os.utime(path, ns=(1, 1))
    table = ParquetTable(path, direct_bytes=0)
    assert table[0] == {"id": 7}
    assert table.fingerprint != before


def test_no_room_for_a_copy(path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ConfigError, match=r"uncompressed copy of .*a.parquet takes .* set XDG"):
        ParquetTable(path, direct_bytes=0)


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_damaged_files_are_named(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    with pytest.raises(ConfigError, match=r"a.parquet is not a whole Parquet file"):
        ParquetTable(path)


@pytest.mark.parametrize("direct_bytes", [0, 1 << 30])
def test_a_damaged_row_group_is_named(path, direct_bytes):
    content = bytearray(path.read_bytes())
    content[4:300] = b"\xff" * 296
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a.parquet:? cannot be read"):
        _ = ParquetTable(path, direct_bytes=direct_bytes)[0]


def test_a_table_notices_that_its_file_was_replaced(path):
    table = ParquetTable(path)
    pq.write_table(pa.table({"id": [7]}), path)
    with pytest.raises(ConfigError, match=r"was changed while it was in use"):
        table[0]
