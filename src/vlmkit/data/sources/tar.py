"""Tar shards as in WebDataset: files with a common stem are one sample, read where they stand."""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmkit.data.media import FileRange
from vlmkit.data.sources.arrow_file import ArrowCache, Joined, write_arrow
from vlmkit.data.sources.files import DataFile, Paths, fingerprint_of, matched_files
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import ConfigError

logger = logging.getLogger(__name__)

KEY = "__key__"
"""Column with the common stem of a sample's files."""

_MAGIC = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_BLOCK = 512
_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "extension": pa.list_(pa.string()),
        "offset": pa.list_(pa.int64()),
        "size": pa.list_(pa.int64()),
    }
)


class TarTable:
    """Samples of tar shards: extension -> bytes to be fetched, and `__key__`.

    A file belongs to the sample named by its path up to the first dot of its base name; what follows
    that dot is its extension, in lower case. Files of a sample need not be neighbours. The headers are
    read once and kept in the cache; nothing is ever extracted.

    Args:
        paths: shards, wildcards such as `shard-{000..009}.tar`, or lists of them; see `Paths`.

    Raises:
        ConfigError: nothing matches, a shard is compressed or damaged, or a sample has a file twice.
    """

    def __init__(self, paths: Paths) -> None:
        self._files = matched_files(paths)
        self._indices = ArrowCache("tar-1", self._files, _write_index, "reading headers of")
        self._rows = Joined(self._indices.counts)
        self.fingerprint = fingerprint_of("tar", self._files, self._indices.digests)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        number, row = self._rows.locate(index)
        file, sample = self._files[number], self._indices[number].row(row)
        key = sample["key"]
        found: dict[str, Any] = {KEY: key}
        places = zip(sample["extension"], sample["offset"], sample["size"], strict=True)
        for extension, offset, size in places:
            found[extension] = FileRange(file.path, offset, size, f"{file.name}:{key}.{extension}")
        return found

    def origin(self, index: int) -> str:
        """See `Table.origin`: the key takes the place of the line."""
        number, row = self._rows.locate(index)
        return f"{self._files[number].name}:{self._indices[number].row(row)['key']}"


def _write_index(file: DataFile, target: Path, progress: FileProgress) -> None:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    header_hash = hashlib.blake2b(digest_size=16)
    others = 0
    for member in _members(file, progress):
        header_hash.update(
            repr((member.name, member.offset_data, member.size, member.mtime)).encode(
                "utf-8", "surrogateescape"
            )
        )
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not (member.isreg() and stem and dot):
            others += not member.isdir()
            continue
        key, extension = folder + slash + stem, extension.lower()
        sample = samples.setdefault(_as_text(key, file), {})
        if extension in sample:
            raise ConfigError(f"{file.name}: the sample {key} has two files .{extension}")
        sample[_as_text(extension, file)] = (member.offset_data, member.size)
    if others:
        logger.info(
            "%s: %d files without stem, extension or content are left out", file.name, others
        )
    columns = {
        "key": list(samples),
        "extension": [list(sample) for sample in samples.values()],
        "offset": [[place[0] for place in sample.values()] for sample in samples.values()],
        "size": [[place[1] for place in sample.values()] for sample in samples.values()],
    }
    table = pa.table(columns, schema=_SCHEMA)
    about = {"digest": header_hash.hexdigest()}
    write_arrow(target, _SCHEMA, table.to_batches(), about, rows_per_batch=1024)


def _as_text(name: str, file: DataFile) -> str:
    if name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name):
        return name
    raise ConfigError(f"{file.name}: the name of a file in it is not UTF-8: {name!a}; rename it")


def _members(file: DataFile, progress: FileProgress) -> Iterator[tarfile.TarInfo]:
    """Headers in order. A damaged one must not look like the end."""
    try:
        with file.path.open("rb") as content:
            _refuse_compressed(file, content.read(6))
            content.seek(0)
            with tarfile.open(fileobj=content, mode="r:", encoding="utf-8") as shard:
                position = 0
                while (member := shard.next()) is not None:
                    if member.issparse():
                        raise ConfigError(
                            f"{file.name}: {member.name} is stored with holes; pack it without --sparse"
                        )
                    yield member
                    shard.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
                    progress.advance(shard.offset - position)
                    position = shard.offset
                content.seek(shard.offset)
                rest = content.read(_BLOCK)
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {shard.offset}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigError(f"{file.name}: not a whole tar file ({error})") from error


def _refuse_compressed(file: DataFile, first: bytes) -> None:
    for magic, command in _MAGIC.items():
        if first.startswith(magic):
            raise ConfigError(
                f"{file.name} is compressed, and a single file in it cannot be read: unpack it once "
                f"with `{command} {file.name}` (pictures are compressed already)"
            )
