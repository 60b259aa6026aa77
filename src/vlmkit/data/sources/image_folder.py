"""Pictures in folders, with their captions beside them or listed in a metadata file."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmkit.data.sources.arrow_file import ArrowFile, write_arrow
from vlmkit.data.sources.cache import cached
from vlmkit.data.sources.files import short_hash
from vlmkit.data.sources.jsonl import parse_object
from vlmkit.errors import ConfigError, RecordError, listed

logger = logging.getLogger(__name__)

PICTURES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
CAPTIONS = (".txt", ".caption", ".json")
METADATA = ("metadata.jsonl", "metadata.csv")

_SCHEMA = pa.schema({name: pa.string() for name in ("image", "caption_file", "row", "origin")})
_ROWS_AT_ONCE = 1024


class ImageFolderTable:
    """Pictures below a folder: `image` (path), `file_name`, `folder`, and what is said about each.

    Where there is a `metadata.jsonl` or `metadata.csv`, its rows are the rows, in its order; their
    `file_name` counts from the metadata's own folder (the convention of the `datasets` library).
    Elsewhere the rows are the pictures in the order of their names, and a file of the same stem
    describes each: `caption` is the text of a `.txt` or `.caption`, columns are those of a `.json`.
    Names that begin with a dot are passed over.

    Args:
        root: the folder.

    Raises:
        ConfigError: there is no such folder or no picture in it, or a metadata file is damaged.
    """

    def __init__(self, root: str | Path | None) -> None:
        if root is None:
            raise ConfigError("no folder is named: set source.table.root=<folder>")
        self._name = str(root)
        self._root = Path(root).expanduser().absolute()
        if not self._root.is_dir():
            raise ConfigError(f"there is no folder {root} (in {os.getcwd()})")
        listing = _Listing.of(self._root)
        if not listing.pictures:
            raise ConfigError(
                f"no picture below {root}: their names end with {', '.join(sorted(PICTURES))}"
            )
        self._state = listing.state
        self.fingerprint = short_hash("image folder", *listing.contents(self._root))
        self._index: ArrowFile | None = None
        self._index = self._opened(listing)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        place = self._rows.row(index)
        name = place["image"]
        row: dict[str, Any] = json.loads(place["row"]) if place["row"] else {}
        if place["caption_file"]:
            row |= _described(self._root / place["caption_file"])
        folder = os.path.dirname(name)
        return {**row, "image": self._root / name, "file_name": name, "folder": folder}

    def origin(self, index: int) -> str:
        """See `Table.origin`: the row of the metadata, or the picture."""
        return os.path.join(self._name, self._rows.row(index)["origin"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}

    @property
    def _rows(self) -> ArrowFile:
        if self._index is None:
            self._index = self._opened(None)
        return self._index

    def _opened(self, listing: _Listing | None) -> ArrowFile:
        def write(path: Path) -> None:
            seen = listing or _Listing.of(self._root)
            if seen.state != self._state:
                raise ConfigError(f"{self._name} was changed while it was in use: start again")
            write_arrow(path, _SCHEMA, _batches(seen.rows(self._root)), {}, _ROWS_AT_ONCE)

        return cached("image-folder-1", str(self._root), self._state, write, ArrowFile)


@dataclass(frozen=True)
class _Listing:
    """Files below a folder that matter, relative to it and sorted."""

    pictures: dict[str, int]  # to their sizes
    captions: dict[str, int]
    metadata: dict[str, str]  # to their states

    @classmethod
    def of(cls, root: Path) -> _Listing:
        listing = cls({}, {}, {})
        for folder, inner, files in os.walk(root, followlinks=True):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for base in sorted(name for name in files if not name.startswith(".")):
                path = os.path.join(folder, base)
                name, suffix = os.path.relpath(path, root), os.path.splitext(base)[1].lower()
                if base in METADATA:
                    stat = os.stat(path)
                    listing.metadata[name] = f"{stat.st_size}-{stat.st_mtime_ns}"
                elif suffix in PICTURES:
                    listing.pictures[name] = os.stat(path).st_size
                elif suffix in CAPTIONS:
                    listing.captions[name] = os.stat(path).st_size
        if listing.metadata:
            listing.captions.clear()
        return listing

    @property
    def state(self) -> str:
        return short_hash(self.pictures, self.captions, self.metadata)

    def contents(self, root: Path) -> Iterator[object]:
        yield from (self.pictures, self.captions)
        for name in self.metadata:
            yield (name, (root / name).read_bytes())

    def rows(self, root: Path) -> Iterator[dict[str, str | None]]:
        if not self.metadata:
            for name in sorted(self.pictures):
                found = [c for suffix in CAPTIONS if (c := _stem(name) + suffix) in self.captions]
                if len(found) > 1:
                    raise ConfigError(
                        f"{root}: {name} is described by {' and '.join(found)}: keep one"
                    )
                caption = found[0] if found else None
                yield {"image": name, "caption_file": caption, "row": None, "origin": name}
            return
        unlisted = set(self.pictures)
        for metadata in self.metadata:
            for number, row in _metadata_rows(root, metadata):
                name = _picture_of(row, root, metadata, number)
                unlisted.discard(name)
                origin = f"{metadata}:{number}"
                text = json.dumps(row, ensure_ascii=False)
                yield {"image": name, "caption_file": None, "row": text, "origin": origin}
        if unlisted:
            logger.warning(
                "%s: %d of %d pictures are in no metadata file and left out: %s",
                root,
                len(unlisted),
                len(self.pictures),
                listed(sorted(unlisted), most=3),
            )


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _metadata_rows(root: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, counted from 1, and content of the rows of a metadata file."""
    try:
        if name.endswith(".jsonl"):
            with (root / name).open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        place = f"{root / name}:{number}"
                        yield number, parse_object(line, lambda place=place: place)
            return
        with (root / name).open(encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, strict=True), start=1):
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{root / name}: row {number} has other columns than the header names; quote "
                        "texts that hold commas"
                    )
                yield number, row
    except (RecordError, csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{root / name} is damaged: {error}") from error


def _picture_of(row: dict[str, Any], root: Path, metadata: str, number: int) -> str:
    """The picture that a row of metadata is about, relative to the root."""
    file_name = row.get("file_name")
    place = f"{root / metadata}:{number}"
    if not isinstance(file_name, str) or not file_name:
        raise ConfigError(
            f"{place}: file_name is {file_name!r}; each row names its picture there, relative to the "
            "metadata file"
        )
    path = os.path.normpath(os.path.join(os.path.dirname(metadata), file_name))
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise ConfigError(f"{place}: {file_name} lies outside {root}")
    return path


def _described(path: Path) -> dict[str, Any]:
    """What a caption file says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error})") from error
    if path.suffix == ".json":
        return parse_object(content, lambda: str(path))
    try:
        return {"caption": content.decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error


def _batches(rows: Iterator[dict[str, str | None]]) -> Iterator[pa.RecordBatch]:
    held: list[dict[str, str | None]] = []
    for row in rows:
        held.append(row)
        if len(held) == _ROWS_AT_ONCE:
            yield pa.RecordBatch.from_pylist(held, schema=_SCHEMA)
            held = []
    yield pa.RecordBatch.from_pylist(held, schema=_SCHEMA)
