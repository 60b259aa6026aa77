"""Samples of tar shards."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile

import pytest

from tests.data.sources.writers import write_tar
from vlmkit.data.sources.cache import cache_folder
from vlmkit.data.sources.tar import TarTable
from vlmkit.errors import ConfigError, MediaError

MEMBERS = [
    ("00.jpg", b"first"),
    ("00.txt", b"one"),
    ("sub.dir/01.left.JPG", b"left"),
    ("sub.dir/01.right.jpg", b""),
    ("02.txt", b"three"),
    ("00.json", b"{}"),  # apart from the others of its sample
]


def read(row) -> dict:
    return {k: v if isinstance(v, str) else v.read() for k, v in row.items()}


def test_files_with_a_common_stem_are_a_sample(tmp_path):
    table = TarTable(write_tar(tmp_path / "a.tar", MEMBERS))
    assert [read(table[i]) for i in range(len(table))] == [
        {"__key__": "00", "jpg": b"first", "txt": b"one", "json": b"{}"},
        {"__key__": "sub.dir/01", "left.jpg": b"left", "right.jpg": b""},
        {"__key__": "02", "txt": b"three"},
    ]
    assert table.origin(1).endswith("a.tar:sub.dir/01")
    assert table[1]["left.jpg"].name.endswith("a.tar:sub.dir/01.left.jpg")
    assert read(pickle.loads(pickle.dumps(table))[2])["txt"] == b"three"


def test_shards_follow_each_other(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"s-{number:03}.tar", [(f"{i}.txt", b"%d" % number) for i in range(2)])
    table = TarTable(tmp_path / "s-{000..002}.tar")
    assert [table[i]["txt"].read() for i in range(6)] == [b"0", b"0", b"1", b"1", b"2", b"2"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_format(tmp_path, kind):
    names = ["ä" * 40 + ".txt", "x/" * 40 + "b.txt"]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as shard:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 5
            shard.addfile(info, io.BytesIO(b"hello"))
    table = TarTable(tmp_path / "a.tar")
    assert [table[i]["__key__"] + ".txt" for i in range(2)] == names
    assert table[1]["txt"].read() == b"hello"


def test_folders_links_and_files_without_stem_are_counted(tmp_path, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("README", "._00.jpg", "00.txt"):
            shard.addfile(tarfile.TarInfo(name))
        for name, kind in (("folder", tarfile.DIRTYPE), ("01.txt", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            shard.addfile(info)
    with caplog.at_level("INFO"):
        assert len(TarTable(tmp_path / "a.tar")) == 1
    assert "3 files without stem, extension or content are left out" in caplog.text


def test_a_compressed_shard_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"a.tar is compressed.*`gunzip "):
        TarTable(path)


def test_a_file_that_is_there_twice(tmp_path):
    with pytest.raises(ConfigError, match=r"the sample 00 has two files .jpg"):
        TarTable(write_tar(tmp_path / "a.tar", [*MEMBERS, ("00.jpg", b"")]))


@pytest.mark.parametrize("damage", ["cut", "header", "no tar"])
def test_a_damaged_shard_does_not_look_short(tmp_path, damage):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"x" * 1000) for i in range(9)])
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: 1536 * 4 + 600]
    elif damage == "header":
        content[1536 * 4 : 1536 * 4 + 512] = b"\x07" * 512
    else:
        content = bytearray(b"hello" * 1000)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a.tar: not a whole tar file"):
        TarTable(path)


def test_headers_are_read_again_when_the_shard_changes(tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    before = TarTable(path)
    cached = sorted(cache_folder("tar-1").iterdir())
    assert TarTable(path).fingerprint == before.fingerprint
    assert sorted(cache_folder("tar-1").iterdir()) == cached
    write_tar(path, [("05.txt", b"new")])
    os.utime(path, ns=(1, 1))
    after = TarTable(path)
    assert read(after[0]) == {"__key__": "05", "txt": b"new"}
    assert after.fingerprint != before.fingerprint


def test_a_shard_that_was_cut_later_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.txt", b"x" * 1000)])
    blob = TarTable(path)[0]["txt"]
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(MediaError, match=r"a.tar:0.txt"):
        blob.read()
