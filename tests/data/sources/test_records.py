"""Sources over every storage, alone, in loader processes, split and drawn from."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.data.sources.writers import as_row, conversations, png, write_lines, write_tar
from vlmkit.data.media import FrameSequence
from vlmkit.data.record import Conversation, VideoPart
from vlmkit.data.sources.captions import Captions
from vlmkit.data.sources.documents import Documents
from vlmkit.data.sources.image_folder import ImageFolderTable
from vlmkit.data.sources.jsonl import JsonlTable
from vlmkit.data.sources.messages import Messages
from vlmkit.data.sources.parquet import ParquetTable
from vlmkit.data.sources.records import Records, Split, Subset
from vlmkit.data.sources.tar import TarTable
from vlmkit.data.sources.text import TextTable
from vlmkit.data.sources.webdataset import WebDatasetSample
from vlmkit.errors import ConfigError

STORAGES = ("lines", "list", "parquet", "copied parquet", "tar")


def stored(storage: str, folder: Path, rows: list[dict]) -> Records:
    """A source of rows in the layout of messages."""
    layout = Messages()
    match storage:
        case "lines":
            table = JsonlTable(write_lines(folder / "a.jsonl", rows, newline="\r\n"))
        case "list":
            (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")
            table = JsonlTable(folder / "a.json")
        case "tar":
            members = [(f"{i:03}.json", json.dumps(row).encode()) for i, row in enumerate(rows)]
            table = TarTable(write_tar(folder / "a.tar", members))
            return Records("mine", table, WebDatasetSample(layout))
        case _:
            # one type per column: contents and arguments differ from row to row
            texts = [{name: json.dumps(value) for name, value in row.items()} for row in rows]
            pq.write_table(
                pa.Table.from_pylist(_filled(texts)), folder / "a.parquet", row_group_size=2
            )
            table = ParquetTable(
                folder / "a.parquet", direct_bytes=0 if "copied" in storage else 10**9
            )
            return Records("mine", table, _Parsed(layout))
    return Records("mine", table, layout)


def _filled(rows: list[dict]) -> list[dict]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


class _Parsed:
    """A layout of one's own: columns are JSON."""

    def __init__(self, layout: Messages) -> None:
        self.layout = layout

    def __call__(self, row, media):
        values = {name: json.loads(v) for name, v in row.mapping().items() if v is not None}
        return self.layout(type(row)(values, row.origin, row.key), media)


def comparable(conversation: Conversation, meta: bool = True) -> Conversation:
    """Without where it came from; frames are named for their place."""

    def plain(part):
        if isinstance(part, VideoPart) and isinstance(part.video, FrameSequence):
            return replace(part, video=replace(part.video, name=""))
        return part

    turns = [replace(m, parts=tuple(map(plain, m.parts))) for m in conversation.messages]
    kept = {k: v for k, v in conversation.meta.items() if k != "key"}
    return replace(conversation, messages=tuple(turns), source="", key=0, origin="", meta=kept)


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory):
    root, numbers = tmp_path_factory.mktemp("records"), count()

    def make() -> Path:
        folder = root / str(next(numbers))
        folder.mkdir()
        return folder

    return make


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(written=st.lists(conversations(), min_size=1, max_size=4))
def test_what_was_written_is_read(new_folder, storage, written):
    source = stored(storage, new_folder(), [as_row(c) for c in written])
    assert len(source) == len(written)
    for i in reversed(range(len(written))):
        assert comparable(source[i]) == comparable(written[i])
        assert (source[i].source, source[i].key) == ("mine", i)
        assert Path(source[i].origin.partition(":")[0]).suffix in (
            ".jsonl",
            ".json",
            ".parquet",
            ".tar",
        )


def many(storage: str, folder: Path) -> Records:
    """A source of each kind with a hundred rows."""
    if storage == "folder":
        for i in range(100):
            (folder / f"{i:03}.png").write_bytes(png())
            (folder / f"{i:03}.txt").write_text(f"text {i}")
        return Records("mine", ImageFolderTable(folder), Captions())
    if storage == "text":
        (folder / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(100)))
        return Records("mine", TextTable(folder / "a.txt", separator="\n\n"), Documents())
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "text"}]
    return stored(storage, folder, [{"messages": turns, "id": i} for i in range(100)])


@pytest.mark.parametrize("storage", [*STORAGES, "folder", "text"])
def test_loader_processes_see_the_same_rows(tmp_path, storage):
    source = many(storage, tmp_path)
    there = [source[i] for i in range(100)]
    order = [(i * 37) % 100 for i in range(100)]
    loader = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=None,
        sampler=order,
        num_workers=2,
        multiprocessing_context="fork",
    )
    assert list(loader) == [there[i] for i in order]
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in order[:5]] == [there[i] for i in order[:5]]
    assert copy.fingerprint == source.fingerprint


def test_a_process_that_starts_from_nothing_sees_the_same_rows(tmp_path):
    sources = []
    for storage in (*STORAGES, "folder", "text"):
        (tmp_path / storage).mkdir()
        sources.append(many(storage, tmp_path / storage))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(_some_rows, sources)
    assert found == [_some_rows(source) for source in sources]


def _some_rows(source: Records) -> list[Conversation]:
    return [source[i] for i in (7, 3, 99)]


def test_fingerprints_depend_on_rows_and_layout(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"x": 1}])
    prints = {
        Records("a", JsonlTable(path), layout).fingerprint
        for layout in (
            Messages(),
            Messages(),
            Messages(trim=False),
            Documents(),
            _Parsed(Messages()),
        )
    }
    assert len(prints) == 4
    source = Records("a", JsonlTable(path), Messages())
    other = Records("b", JsonlTable(path), Messages())
    assert source.fingerprint == other.fingerprint
    write_lines(path, [{"x": 1}, {"x": 2}])
    assert Records("a", JsonlTable(path), Messages()).fingerprint != source.fingerprint


def test_a_source_without_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"the source mine has no rows"):
        Records("mine", JsonlTable(write_lines(tmp_path / "a.jsonl", [])), Messages())


class Numbers:
    """A source whose conversations are their positions."""

    def __init__(self, size: int) -> None:
        self.size, self.fingerprint = size, f"{size}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return Conversation(messages=(), key=index, source="numbers")


def keys(source) -> list[int]:
    return [source[i].key for i in range(len(source))]


@given(st.integers(2, 300), st.integers(2, 40), st.integers(0, 9))
def test_the_sides_of_a_split_are_the_whole(size, every, seed):
    sides = []
    for held_out in (False, True):
        try:
            sides.append(keys(Split(Numbers(size), held_out, every, seed)))
        except ConfigError:  # nothing on this side
            sides.append([])
    assert sorted(sides[0] + sides[1]) == list(range(size))
    assert sides[1] == sorted(sides[1])
    assert abs(len(sides[1]) - size / every) < 1
    for start in range(0, size - every + 1, every):
        assert sum(start <= key < start + every for key in sides[1]) == 1


def test_rows_that_are_added_move_none_to_the_other_side():
    small, large = (set(keys(Split(Numbers(n), True, 10))) for n in (200, 250))
    assert small == {key for key in large if key < 200}
    assert small != set(keys(Split(Numbers(200), True, 10, seed=1)))


@given(st.integers(1, 200), st.data(), st.integers(0, 3))
def test_a_subset_holds_each_row_once_and_smaller_lies_in_larger(size, data, seed):
    count = data.draw(st.integers(1, size))
    subset = Subset(Numbers(size), count=count, seed=seed)
    found = keys(subset)
    assert len(set(found)) == count == len(subset)
    assert found == keys(Subset(Numbers(size), count=size, seed=seed))[:count]


def test_parts_of_sources_can_be_sent_named_and_told_apart():
    half = Subset(Numbers(10), share=0.5, name="half")
    assert len(half) == 5
    assert half[0].source == "half"
    assert Split(Numbers(10), every=2)[0].source == "numbers"
    assert keys(pickle.loads(pickle.dumps(half))) == keys(half)
    prints = [
        half.fingerprint,
        Subset(Numbers(10), share=0.5, seed=1).fingerprint,
        Split(Numbers(10), every=2).fingerprint,
        Split(Numbers(10), True, every=2).fingerprint,
        Split(Numbers(11), every=2).fingerprint,
    ]
    assert len(set(prints)) == 5
    for part in (half, Split(Numbers(10), every=2)):
        for index in (-1, 5):
            with pytest.raises(IndexError):
                part[index]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Split(Numbers(9), every=1), "every is 1"),
        (
            lambda: Split(Numbers(1), True, every=100),
            "of 1 rows none is on this side.* lower split.every",
        ),
        (lambda: Subset(Numbers(9)), "give one of them"),
        (lambda: Subset(Numbers(9), share=0.5, count=3), "give one of them"),
        (lambda: Subset(Numbers(9), share=1.5), "share is 1.5"),
        (lambda: Subset(Numbers(9), count=10), "10 rows cannot be drawn from 9"),
        (lambda: Subset(Numbers(9), count=0), "0 rows cannot be drawn from 9"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
