"""Uncompressed Arrow files in the cache: memory-mapped, any row at once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmkit.data.sources.cache import cached
from vlmkit.data.sources.files import DataFile
from vlmkit.data.sources.progress import FileProgress

_OPEN_FILES = 64
_ABOUT = b"vlmkit"

WriteIndex = Callable[[DataFile, Path, FileProgress], None]
"""Writes the Arrow file that belongs to a data file, and counts the bytes it has read."""


def write_arrow(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    about: dict[str, Any],
    rows_per_batch: int,
) -> None:
    """Write rows as they come, in batches of equal size; `about` is kept beside them."""
    about = {**about, "rows_per_batch": rows_per_batch}
    schema = schema.with_metadata({**(schema.metadata or {}), _ABOUT: json.dumps(about).encode()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _of_equal_size(batches, schema, rows_per_batch):
            writer.write_batch(batch)


def _of_equal_size(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int
) -> Iterator[pa.RecordBatch]:
    """The same rows with `rows` in each batch, fewer in the last."""
    held = schema.empty_table()
    for batch in batches:
        if not held.num_rows and batch.num_rows == rows:
            yield batch
            continue
        held = pa.concat_tables([held, pa.table(batch).replace_schema_metadata(schema.metadata)])
        while held.num_rows >= rows:
            yield _as_one(held.slice(0, rows))
            held = held.slice(rows)
    if held.num_rows:
        yield _as_one(held)


def _as_one(table: pa.Table) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch


class ArrowFile:
    """Rows of an Arrow file. Memory-mapped: opening reads little, and rows leave nothing behind.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        source = pa.memory_map(str(path))
        options = pa.ipc.IpcReadOptions(use_threads=False)
        self._reader = pa.ipc.open_file(source, options=options)
        self._columns: dict[str, NDArray[np.int64]] = {}
        self.about: dict[str, Any] = json.loads(
            (self._reader.schema.metadata or {}).get(_ABOUT, b"")
        )
        self._rows_per_batch = int(self.about["rows_per_batch"])
        last = self._reader.num_record_batches - 1
        before = max(last, 0) * self._rows_per_batch
        self._num_rows = before + (self._reader.get_batch(last).num_rows if last >= 0 else 0)

    def __len__(self) -> int:
        return self._num_rows

    def row(self, index: int) -> dict[str, Any]:
        """Row `index`, as Python values."""
        number, at = divmod(index, self._rows_per_batch)
        batch = self._reader.get_batch(number)
        return {name: batch.column(i)[at].as_py() for i, name in enumerate(batch.schema.names)}

    def numbers(self, column: str) -> NDArray[np.int64]:
        """A column of int64 in a file of one batch; (rows,), still on disk."""
        found = self._columns.get(column)
        if found is None:
            found = self._columns[column] = self._reader.get_batch(0).column(column).to_numpy()
        return found


class ArrowCache:
    """An Arrow file in the cache for each of many data files, written where there is none.

    Args:
        kind: what they hold; part of their place in the cache.
        files: the data files.
        write: writes one of them; a function of a module, so that it can be sent to other processes.
        work: what is done to a data file, for progress.
    """

    def __init__(self, kind: str, files: Sequence[DataFile], write: WriteIndex, work: str) -> None:
        self.kind, self._files, self._write, self._work = kind, files, write, work
        self._open: OrderedDict[int, ArrowFile] = OrderedDict()
        total = sum(file.size for file in files)
        what = files[0].name if len(files) == 1 else f"{len(files)} files"
        self.counts: list[int] = []
        self.digests: list[str] = []
        with FileProgress(f"{work} {what}", total) as progress:
            for number, file in enumerate(files):
                before = progress.done
                opened = self._opened(number, progress)
                self.counts.append(len(opened))
                self.digests.append(str(opened.about["digest"]))
                progress.advance(file.size - (progress.done - before))

    def __getitem__(self, number: int) -> ArrowFile:
        """The Arrow file of data file `number`."""
        opened = self._open.get(number)
        if opened is None:
            file = self._files[number]
            with FileProgress(f"{self._work} {file.name}", file.size) as progress:
                opened = self._open[number] = self._opened(number, progress)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _opened(self, number: int, progress: FileProgress) -> ArrowFile:
        file = self._files[number]
        return cached(
            self.kind,
            str(file.path),
            file.state,
            lambda path: self._write(file, path, progress),
            ArrowFile,
        )


class Joined:
    """Row numbers over several files: which file, and which row of it."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._stops = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def locate(self, index: int) -> tuple[int, int]:
        """File and row.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._stops, index, side="right"))
        return number, index - (int(self._stops[number - 1]) if number else 0)
