"""Pictures in folders and what is said about them."""

from __future__ import annotations

import json
import pickle

import pytest

from tests.data.sources.writers import png, write_lines
from vlmkit.data.sources.image_folder import ImageFolderTable
from vlmkit.errors import ConfigError, RecordError


def rows(table) -> list[dict]:
    return [table[i] for i in range(len(table))]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "cats/c.webp", ".hidden.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    return tmp_path


def test_captions_beside_pictures(folder):
    (folder / "a.txt").write_bytes("\ufeffa cat\r\n".encode())
    (folder / "b.caption").write_text("ein Bär", encoding="utf-8")
    (folder / "cats" / "c.json").write_text(json.dumps({"caption": "two", "score": 3}))
    table = ImageFolderTable(folder)
    assert rows(table) == [
        {"caption": "a cat", "image": folder / "a.JPG", "file_name": "a.JPG", "folder": ""},
        {"caption": "ein Bär", "image": folder / "b.png", "file_name": "b.png", "folder": ""},
        {
            "caption": "two",
            "score": 3,
            "image": folder / "cats/c.webp",
            "file_name": "cats/c.webp",
            "folder": "cats",
        },
    ]
    assert table.origin(2) == str(folder / "cats/c.webp")
    assert pickle.loads(pickle.dumps(table))[1] == table[1]
    with pytest.raises(IndexError):
        table[3]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata(folder, kind, caplog):
    listed = [
        {"file_name": "b.png", "text": 'say "hi",\nyou'},
        {"file_name": "cats/c.webp", "text": "é"},
    ]
    if kind == "jsonl":
        write_lines(folder / "metadata.jsonl", listed)
    else:
        text = 'file_name,text\r\nb.png,"say ""hi"",\nyou"\r\ncats/c.webp,é\r\n'
        (folder / "metadata.csv").write_bytes(text.encode("utf-8-sig"))
    table = ImageFolderTable(folder)
    assert [(row["text"], row["image"]) for row in rows(table)] == [
        ('say "hi",\nyou', folder / "b.png"),
        ("é", folder / "cats/c.webp"),
    ]
    assert table.origin(1) == str(folder / f"metadata.{kind}:2")
    assert "1 of 3 pictures are in no metadata file and left out: a.JPG" in caplog.text


def test_metadata_in_a_folder_of_its_own(folder):
    write_lines(folder / "cats" / "metadata.jsonl", [{"file_name": "c.webp", "text": "x"}])
    assert ImageFolderTable(folder)[0]["image"] == folder / "cats/c.webp"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.JPG"}\n{"file": "b.png"}',
            r"jsonl:2: file_name is None",
        ),
        ("metadata.jsonl", '{"file_name": "../x.png"}', "lies outside"),
        ("metadata.jsonl", "{", r"is damaged: .*jsonl:1: not JSON"),
        ("metadata.csv", "file_name,text\na.JPG,one, two\n", "row 1 has other columns"),
        ("metadata.csv", 'file_name,text\na.JPG,"one\n', "is damaged"),
    ],
)
def test_damaged_metadata_is_named(folder, name, content, words):
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        ImageFolderTable(folder)


def test_mistakes(folder, tmp_path_factory):
    (folder / "a.txt").write_text("x")
    (folder / "a.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"a.JPG is described by a.txt and a.json: keep one"):
        ImageFolderTable(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(RecordError, match=r"a.json: the row is a list"):
        ImageFolderTable(folder)[0]
    (folder / "b.txt").write_bytes(b"\xff")
    with pytest.raises(RecordError, match=r"b.txt: byte 0 is not UTF-8"):
        ImageFolderTable(folder)[1]
    with pytest.raises(ConfigError, match=r"no picture below"):
        ImageFolderTable(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ConfigError, match=r"there is no folder"):
        ImageFolderTable(folder / "nowhere")


def test_new_pictures_are_seen_and_change_the_fingerprint(folder):
    before = ImageFolderTable(folder)
    assert ImageFolderTable(folder).fingerprint == before.fingerprint
    (folder / "d.png").write_bytes(png())
    after = ImageFolderTable(folder)
    assert (len(before), len(after)) == (3, 4)
    assert after.fingerprint != before.fingerprint
    copy = pickle.loads(pickle.dumps(before))
    with pytest.raises(ConfigError, match=r"was changed while it was in use"):
        copy[0]
