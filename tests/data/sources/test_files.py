"""Which files a pattern names."""

from __future__ import annotations

import pickle

import pytest

from vlmkit.data.sources.auto import open_table
from vlmkit.data.sources.files import FileReads, matched_files
from vlmkit.data.sources.jsonl import JsonlTable
from vlmkit.errors import ConfigError


def names(paths) -> list[str]:
    return [file.path.name for file in matched_files(paths)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a-00.jsonl", "a-01.jsonl", "a-02.jsonl", "b.jsonl", "[c].jsonl"):
        (tmp_path / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("b.jsonl", ["b.jsonl"]),
        ("[c].jsonl", ["[c].jsonl"]),  # a file of this name comes before a wildcard
        ("a-*.jsonl", ["a-00.jsonl", "a-01.jsonl", "a-02.jsonl"]),
        ("a-{00..02}.jsonl", ["a-00.jsonl", "a-01.jsonl", "a-02.jsonl"]),
        ("a-{02..00}.jsonl", ["a-02.jsonl", "a-01.jsonl", "a-00.jsonl"]),
        ("{b,a-01}.jsonl", ["b.jsonl", "a-01.jsonl"]),
        (["b.jsonl", "a-0{0..1}.jsonl"], ["b.jsonl", "a-00.jsonl", "a-01.jsonl"]),
        ("**/b.jsonl", ["b.jsonl"]),
    ],
)
def test_patterns(folder, pattern, expected):
    assert names(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("x*.jsonl", r"no file matches x\*.jsonl"),
        ("a-{00..03}.jsonl", "there is no file a-03.jsonl.*Did you mean a-0"),
        ("nowhere/b.jsonl", "nor is there a folder nowhere"),
        ([], "empty list"),
        (".", "is a folder: name its files"),
        (["b.jsonl", "?.jsonl"], "b.jsonl is named twice.*weight"),
    ],
)
def test_mistakes_name_the_pattern_and_a_remedy(folder, pattern, words):
    with pytest.raises(ConfigError, match=words):
        matched_files(pattern)


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz", "bz2"])
def test_compressed_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=rf"unpack it once with `\w+ .*{suffix}`"):
        JsonlTable(path)


def test_a_file_that_changes_while_in_use_is_noticed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    reads = FileReads(matched_files(path))
    assert reads.read(0, 2, 5) == b"234"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"became shorter"):
        reads.read(0, 2, 5)
    with pytest.raises(ConfigError, match=r"was changed while it was in use"):
        pickle.loads(pickle.dumps(reads)).read(0, 0, 1)


def test_tables_are_found_by_suffix(folder):
    assert len(open_table("a-*.jsonl")) == 3
    (folder / "d.txt").write_text("hello")
    assert len(open_table("d.txt")) == 1
    with pytest.raises(ConfigError, match=r"of one kind"):
        open_table(["b.jsonl", "d.txt"])
    (folder / "e.dat").write_text("hello")
    with pytest.raises(ConfigError, match=r"\['.dat'\].*\.parquet"):
        open_table("e.dat")
