"""Tables of values between tabs or commas, with a header, as VLMEvalKit publishes benchmarks, row by row.

Pictures stand in such files as base64, so that a file may have many GB and a row many MB. One scan finds
where rows begin; a row is then read alone, and its pictures only when they are opened.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmkit.data.sources.arrow_file import ArrowCache, Joined, write_arrow
from vlmkit.data.sources.files import (
    DataFile,
    FileReads,
    Paths,
    fingerprint_of,
    matched_files,
    short_hash,
)
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import ConfigError, MediaError, RecordError

_CHUNK = 1 << 23
_NEWLINE, _QUOTE = b'\n"'
_BOM = b"\xef\xbb\xbf"
_LONGEST_REFERENCE = 64


class TsvTable:
    """Rows of `.tsv` or `.csv` files, each a dictionary of texts; an empty field is None.

    The rules are those of the csv module: a field that begins with `"` ends with the next
    single `"`, may hold delimiters and line breaks, and `""` in it stands for one.

    Fields of `images` become lists of pictures that can be fetched: one in base64, or a Python or JSON
    list of them. A field of at most 64 characters names the `index` of the row that has the picture, as
    VLMEvalKit writes it where several questions are about one.

    Args:
        paths: files, wildcards or lists of them; see `Paths`.
        images: columns with pictures in base64.
        index: column that such references count in.
        delimiter: one character between fields.

    Raises:
        ConfigError: nothing matches, a file has no header or ends within quotes, or a reference leads
            nowhere.
    """

    def __init__(
        self,
        paths: Paths,
        images: Sequence[str] = ("image",),
        index: str = "index",
        delimiter: str = "\t",
    ) -> None:
        self.images, self._delimiter = tuple(images), delimiter
        self._files = matched_files(paths)
        self._reads = FileReads(self._files)
        kind = f"tsv-1-{short_hash(self.images, index, delimiter)}"
        write = partial(_write_places, images=self.images, index=index, delimiter=delimiter)
        self._places = ArrowCache(kind, self._files, write, "indexing")
        self._rows = Joined(self._places.counts)
        self._headers: dict[int, list[str]] = {}
        self.fingerprint = fingerprint_of(kind, self._files, self._places.digests)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        number, row = self._rows.locate(index)
        texts = self._texts(number, row)
        values: dict[str, Any] = dict(texts)
        for column in self.images:
            if texts.get(column) is None:
                continue
            source = int(self._places[number].numbers(f"row of {column}")[row])
            own = texts[column] if source == row else self._texts(number, source)[column]
            count = len(_listed(own or ""))
            name = f"{self.origin(index)} {column}"
            values[column] = [
                TsvPicture(self, number, source, column, i, f"{name}[{i}]" if count > 1 else name)
                for i in range(count)
            ]
        return values

    def origin(self, index: int) -> str:
        """See `Table.origin`: the line that the row begins on."""
        number, row = self._rows.locate(index)
        return f"{self._files[number].name}:{int(self._places[number].numbers('line')[row])}"

    def picture(self, number: int, row: int, column: str, item: int) -> str:
        """The base64 text of a picture of row `row` of file `number`."""
        return self._pictures(number, row, column)[item]

    def _texts(self, number: int, row: int) -> dict[str, str | None]:
        places = self._places[number]
        start, stop = int(places.numbers("start")[row]), int(places.numbers("stop")[row])
        where = f"{self._files[number].name}:{int(places.numbers('line')[row])}"
        fields = _fields(self._reads.read(number, start, stop), self._delimiter, where)
        header = self._header(number)
        if len(fields) != len(header):
            raise RecordError(
                f"{where}: the row has {len(fields)} fields and the header {len(header)}; a text with "
                f'{self._delimiter!r} or line breaks in it must stand in "quotes"'
            )
        return {name: field or None for name, field in zip(header, fields, strict=True)}

    def _pictures(self, number: int, row: int, column: str) -> list[str]:
        return _listed(self._texts(number, row)[column] or "")

    def _header(self, number: int) -> list[str]:
        if number not in self._headers:
            end = int(self._places[number].about["header"])
            content = self._reads.read(number, 0, end)
            where = f"{self._files[number].name}:1"
            self._headers[number] = _fields(content, self._delimiter, where)
        return self._headers[number]


@dataclass(frozen=True, eq=False)
class TsvPicture:
    """A picture in a field; the row is read again when the picture is."""

    table: TsvTable
    number: int
    row: int
    column: str
    item: int
    name: str

    def read(self) -> bytes:
        """See `Blob.read`."""
        text = self.table.picture(self.number, self.row, self.column, self.item)
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise MediaError(f"{self.name}: it is not base64 ({error})") from error


def _listed(text: str) -> list[str]:
    """The pictures of a field: a Python or JSON list, or one."""
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | tuple):
            return [str(item) for item in found]
    return [text]


def _fields(content: bytes, delimiter: str, where: str) -> list[str]:
    try:
        text = content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{where}: byte {error.start} of the row is not UTF-8; save the file as UTF-8"
        ) from error
    field = re.compile(rf'"([^"]*(?:""[^"]*)*)"([^{delimiter}]*)|([^{delimiter}]*)')
    fields, at = [], 0
    while True:
        match = field.match(text, at)
        assert match is not None
        quoted, after, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"') + after)
        if match.end() == len(text):
            return fields
        at = match.end() + 1


class _Scan:
    """Follows quotes, delimiters and line breaks through a file; no other byte is looked at alone."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self.rows: list[tuple[int, int, int]] = []  # start, stop, line
        self.fields: list[list[int]] = []  # starts of the fields of each row
        self._line = self._row_line = 1
        self._row_start = self._field_start = 0
        self._starts = [0]
        self._quoted = False
        self._opened_on = 1
        self._closed_at = -2  # where the last closing quote stood

    def see(self, place: int, byte: int) -> None:
        """The next special byte."""
        if byte == _QUOTE:
            self._quote(place)
        elif byte == _NEWLINE:
            self._line += 1
            if not self._quoted:
                self._end_row(place)
        elif not self._quoted:
            self._field_start = place + 1
            self._starts.append(place + 1)

    def end(self, size: int) -> None:
        """The end of the file.

        Raises:
            ConfigError: it is within quotes.
        """
        if self._quoted:
            raise ConfigError(
                f'{self.file.name}:{self._opened_on}: a field opens with " here and never ends: the file '
                "was cut off, or the field should be written in quotes with its own quotes doubled"
            )
        if self._row_start < size:
            self._end_row(size)

    def _quote(self, place: int) -> None:
        if self._quoted:
            self._quoted, self._closed_at = False, place
        elif place in (self._field_start, self._closed_at + 1):
            self._quoted, self._opened_on = True, self._line

    def _end_row(self, place: int) -> None:
        self.rows.append((self._row_start, place, self._row_line))
        self.fields.append(self._starts)
        self._row_start = self._field_start = place + 1
        self._row_line, self._starts = self._line, [place + 1]


def _write_places(
    file: DataFile,
    target: Path,
    progress: FileProgress,
    images: tuple[str, ...],
    index: str,
    delimiter: str,
) -> None:
    reads = FileReads([file])
    special = np.zeros(256, bool)
    special[[ord(delimiter), _NEWLINE, _QUOTE]] = True

    def read(start: int, stop: int) -> bytes:
        return reads.read(0, start, stop)

    content_hash = hashlib.blake2b(digest_size=16)
    scan = _Scan(file)
    for at in range(0, file.size, _CHUNK):
        chunk = read(at, min(at + _CHUNK, file.size))
        content_hash.update(chunk)
        data = np.frombuffer(chunk, np.uint8)
        places = np.flatnonzero(special[data])
        for place, byte in zip((places + at).tolist(), data[places].tolist(), strict=True):
            scan.see(place, byte)
        progress.advance(len(chunk))
    scan.end(file.size)
    rows = [_without_return(row, read) for row in scan.rows]
    kept = [i for i, (start, stop, _) in enumerate(rows) if stop > start]  # blank lines are no rows
    if not kept or kept[0] != 0:
        raise ConfigError(f"{file.name} has no header: its first line must name the columns")
    header = _fields(read(*rows[0][:2]), delimiter, f"{file.name}:1")
    kept = kept[1:]
    columns = {
        name: np.array([rows[i][j] for i in kept], np.int64)
        for j, name in enumerate(("start", "stop", "line"))
    }

    def read_field(start: int, stop: int, line: int) -> str:
        return _fields(read(start, stop), delimiter, f"{file.name}:{line}")[0]

    for column in images:
        columns[f"row of {column}"] = _sources(
            [(*rows[i], scan.fields[i]) for i in kept], header, column, index, read_field, file
        )
    batch = pa.record_batch(columns)
    write_arrow(
        target,
        batch.schema,
        [batch],
        {"digest": content_hash.hexdigest(), "header": rows[0][1]},
        rows_per_batch=max(1, batch.num_rows),  # columns are looked at as a whole
    )


Read = Callable[[int, int], bytes]


def _without_return(row: tuple[int, int, int], read: Read) -> tuple[int, int, int]:
    """A row that ends with CR LF, without the CR."""
    start, stop, line = row
    ends_in_return = stop > start and read(stop - 1, stop) == b"\r"
    return start, stop - ends_in_return, line


def _sources(
    rows: list[tuple[int, int, int, list[int]]],
    header: list[str],
    column: str,
    index: str,
    read_field: Callable[[int, int, int], str],
    file: DataFile,
) -> NDArray[np.int64]:
    """Of each row, the number of the row that has its picture."""
    own = np.arange(len(rows), dtype=np.int64)
    if column not in header or index not in header:
        return own
    at, key_at = header.index(column), header.index(index)
    references: dict[int, str] = {}
    rows_of_key: dict[str, int] = {}
    for i, (_, stop, line, starts) in enumerate(rows):
        if len(starts) != len(header):
            continue  # says so when it is read
        ends = [*(start - 1 for start in starts[1:]), stop]
        rows_of_key[read_field(starts[key_at], ends[key_at], line)] = i
        if 0 < ends[at] - starts[at] <= _LONGEST_REFERENCE:
            references[i] = read_field(starts[at], ends[at], line)
    for i, key in references.items():
        source = rows_of_key.get(key)
        if source is None or source in references:
            raise ConfigError(
                f"{file.name}:{rows[i][2]}: {column} is {key!r}, which is no picture, and no row with one "
                f"has this {index}; load the whole file"
            )
        own[i] = source
    return own
