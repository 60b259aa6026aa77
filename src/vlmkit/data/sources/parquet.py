"""Parquet files, whose rows are compressed in groups, with access to single rows."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmkit.data.sources.arrow_file import ArrowCache, Joined, write_arrow
from vlmkit.data.sources.cache import cache_folder, check_space
from vlmkit.data.sources.files import (
    DataFile,
    Paths,
    fingerprint_of,
    matched_files,
    short_hash,
)
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import ConfigError, RecordError

logger = logging.getLogger(__name__)

_BATCH_BYTES = 1 << 20
_KEPT_GROUPS = 8
_OPEN_FILES = 64


class ParquetTable:
    """Rows of Parquet files.

    A row group is decoded as a whole. Where groups are small that is done for each row, and the last
    few groups are kept. Files with larger groups are written once to the cache as uncompressed Arrow
    files, as the `datasets` library does, which takes disk space and makes a row cost as much as its
    bytes.

    Args:
        paths: files, wildcards or lists of them; see `Paths`.
        columns: those to read; None reads all.
        direct_bytes: size of row groups up to which a file is read as it is.

    Raises:
        ConfigError: nothing matches, a file or column cannot be read, or the cache has no room.
    """

    def __init__(
        self, paths: Paths, columns: Sequence[str] | None = None, direct_bytes: int = 1 << 22
    ) -> None:
        self._files = matched_files(paths)
        self._columns = None if columns is None else list(columns)
        footers = [_Footer(file, self._columns) for file in self._files]
        large = [footer for footer in footers if footer.largest_group > direct_bytes]
        self._place_in_cache = {footer.file: i for i, footer in enumerate(large)}
        self._cache = self._converted(large)
        self._groups = _RowGroups(self._files, footers, self._columns)
        self._rows = Joined([footer.num_rows for footer in footers])
        kind = short_hash("parquet", self._columns)
        self.fingerprint = fingerprint_of(kind, self._files, [f.digest for f in footers])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        number, row = self._rows.locate(index)
        place = self._place_in_cache.get(self._files[number])
        try:
            if place is not None:
                return self._cache[place].row(row)
            return self._groups.row(number, row)
        except UnicodeDecodeError as error:
            raise RecordError(
                f"{self.origin(index)}: a text is not UTF-8 ({error}); write the file anew"
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self._files[number].name}: cannot be read ({error})") from error

    def origin(self, index: int) -> str:
        """See `Table.origin`."""
        number, row = self._rows.locate(index)
        return f"{self._files[number].name}:{row + 1}"

    def _converted(self, large: list[_Footer]) -> ArrowCache:
        kind = f"parquet-1-{short_hash(self._columns)}"
        if large:
            logger.info(
                "%d of %d Parquet files have large row groups: single rows of them are read from "
                "uncompressed copies in %s",
                len(large),
                len(self._files),
                cache_folder(kind),
            )
        write = partial(_convert, kind=kind, columns=self._columns)
        return ArrowCache(kind, [footer.file for footer in large], write, "converting")


class _Footer:
    """What the end of a Parquet file says about it."""

    def __init__(self, file: DataFile, columns: list[str] | None) -> None:
        self.file = file
        try:
            with file.path.open("rb") as content:
                content.seek(-8, os.SEEK_END)
                size = int.from_bytes(content.read(4), "little")
                content.seek(-min(8 + size, file.size), os.SEEK_END)
                # sizes, places and statistics of all columns: it changes with the content
                self.digest = hashlib.blake2b(content.read(), digest_size=16).hexdigest()
            about = pq.read_metadata(file.path)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{file.name} is not a whole Parquet file: {error}") from error
        _check_columns(file, about.schema.to_arrow_schema().names, columns)
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        self.num_rows = about.num_rows
        self.stops = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self.group_bytes = [_bytes_of(group, columns) for group in groups]
        self.largest_group = max(self.group_bytes, default=0)


def _bytes_of(group: Any, columns: list[str] | None) -> int:
    """Uncompressed size of the wanted columns of a row group."""
    if columns is None:
        return int(group.total_byte_size)
    wanted = set(columns)
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(
        c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted
    )


def _check_columns(file: DataFile, there: list[str], columns: list[str] | None) -> None:
    for name in columns or ():
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{file.name} has no column {name}: {hint}its columns are {there}")


class _RowGroups:
    """Rows of files that are read as they are; the last few row groups are kept."""

    def __init__(
        self, files: list[DataFile], footers: list[_Footer], columns: list[str] | None
    ) -> None:
        self._files, self._columns = files, columns
        self._stops = [footer.stops for footer in footers]
        self._forget()

    def row(self, number: int, row: int) -> dict[str, Any]:
        """Row `row` of file `number`."""
        if self._pid != os.getpid():  # a reader must not be shared with another process
            self._forget()
        stops = self._stops[number]
        group = int(np.searchsorted(stops, row, side="right"))
        table = self._decoded.get((number, group))
        if table is None:
            table = self._reader(number).read_row_group(
                group, columns=self._columns, use_threads=False
            )
            self._decoded[number, group] = table
            if len(self._decoded) > _KEPT_GROUPS:
                self._decoded.popitem(last=False)
        at = row - (int(stops[group - 1]) if group else 0)
        found: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_columns": self._columns, "_stops": self._stops}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._readers: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._decoded: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def _reader(self, number: int) -> pq.ParquetFile:
        reader = self._readers.get(number)
        if reader is None:
            file = self._files[number]
            if DataFile.of(str(file.path)).state != file.state:
                raise ConfigError(f"{file.name} was changed while it was in use: start again")
            reader = self._readers[number] = pq.ParquetFile(file.path)
            if len(self._readers) > _OPEN_FILES:
                self._readers.popitem(last=False)
        return reader


def _convert(
    file: DataFile, target: Path, progress: FileProgress, kind: str, columns: list[str] | None
) -> None:
    footer = _Footer(file, columns)
    needed = sum(footer.group_bytes)
    check_space(kind, int(1.1 * needed), f"an uncompressed copy of {file.name}")
    rows_per_batch = max(1, min(1024, _BATCH_BYTES * footer.num_rows // max(needed, 1)))
    schema = _schema(pq.read_schema(file.path), columns)
    batches = _batches(file, schema, rows_per_batch)
    shown = _counted(batches, progress, file.size / max(footer.num_rows, 1))
    write_arrow(target, schema, shown, {"digest": footer.digest}, rows_per_batch)


def _schema(schema: pa.Schema, columns: list[str] | None) -> pa.Schema:
    """Dictionaries replaced by what they stand for: an Arrow file holds one dictionary only."""
    fields = [schema.field(name) for name in columns or schema.names]
    plain = [
        f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in fields
    ]
    return pa.schema(plain)


def _batches(file: DataFile, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    """Few rows at a time, so that as many are in memory."""
    try:
        with pq.ParquetFile(file.path) as reader:
            for batch in reader.iter_batches(rows, columns=schema.names, use_threads=False):
                table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                yield from table.to_batches()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file.name} cannot be read: {error}") from error


def _counted(
    batches: Iterator[pa.RecordBatch], progress: FileProgress, bytes_per_row: float
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        progress.advance(int(batch.num_rows * bytes_per_row))
