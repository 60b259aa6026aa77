"""One JSON object per line, or one JSON list of objects, read at the place where a row stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlmkit.data.sources.arrow_file import ArrowCache, Joined, write_arrow
from vlmkit.data.sources.files import (
    DataFile,
    FileReads,
    Paths,
    fingerprint_of,
    matched_files,
)
from vlmkit.data.sources.json_index import RowIndex, is_list, scan_lines, scan_list
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import RecordError


class JsonlTable:
    """Rows of `.jsonl` files, or of `.json` files that hold one list. Blank lines are no rows.

    Where the rows stand is found by one scan and kept in the cache, until the file changes.

    Args:
        paths: files, wildcards or lists of them; see `Paths`.

    Raises:
        ConfigError: nothing matches, a file is compressed, or a list is damaged.
    """

    def __init__(self, paths: Paths) -> None:
        self._files = matched_files(paths)
        self._reads = FileReads(self._files)
        self._indices = ArrowCache("lines-1", self._files, _write_index, "indexing")
        self._rows = Joined(self._indices.counts)
        self.fingerprint = fingerprint_of("json", self._files, self._indices.digests)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        number, row = self._rows.locate(index)
        places = self._indices[number]
        start, stop = int(places.numbers("start")[row]), int(places.numbers("stop")[row])
        return parse_object(self._reads.read(number, start, stop), lambda: self.origin(index))

    def origin(self, index: int) -> str:
        """See `Table.origin`: the line, or the place in the list."""
        number, row = self._rows.locate(index)
        line = int(self._indices[number].numbers("line")[row])
        return f"{self._files[number].name}:{line}"


def parse_object(content: bytes, origin: Any) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        content: its text.
        origin: says where it stands; called only for an error.

    Raises:
        RecordError: it is not UTF-8, not JSON or not an object.
    """
    try:
        parsed = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{origin()}: byte {error.start} of the row is not UTF-8; save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{origin()}: not JSON ({error}); a row is one whole JSON object on one line"
        ) from error
    if not isinstance(parsed, dict):
        raise RecordError(
            f"{origin()}: the row is a {type(parsed).__name__}, not an object: write {{...}}"
        )
    return parsed


def _write_index(file: DataFile, target: Path, progress: FileProgress) -> None:
    reads = FileReads([file])

    def read(start: int, size: int) -> bytes:
        return reads.read(0, start, min(start + size, file.size))

    as_list = file.path.suffix.lower() == ".json" and is_list(read)
    scan = scan_list if as_list else scan_lines
    index: RowIndex = scan(read, file, progress)
    columns = {"start": index.start, "stop": index.stop, "line": index.line}
    batch = pa.record_batch({name: values.astype(np.int64) for name, values in columns.items()})
    write_arrow(
        target,
        batch.schema,
        [batch],
        {"digest": index.digest},
        rows_per_batch=max(1, batch.num_rows),  # columns are looked at as a whole
    )
