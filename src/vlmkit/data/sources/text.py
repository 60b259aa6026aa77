"""Plain text files as documents, long ones in pieces that lose nothing."""

from __future__ import annotations

import hashlib
import mmap
import re
from array import array
from collections.abc import Iterator
from functools import partial
from itertools import chain
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
    short_hash,
)
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import ConfigError

BLANK_LINES = "\n\n"
"""The separator that stands for one or more blank lines, however they end."""

_BLANK_LINES = rb"\r?\n(?:[ \t]*\r?\n)+"
_BOM = b"\xef\xbb\xbf"
_HASHED = 1 << 24
_CUTS = [
    re.compile(pattern) for pattern in (r"\r?\n(?:[ \t]*\r?\n)+", r"\n", r"[.!?。！？]\s+", r"\s+")
]
"""Where a piece may end, best first: paragraphs, lines, sentences, words."""


class TextTable:
    """Documents of text files in UTF-8: columns `text`, `document` (its number in the file) and `file`.

    The pieces of a document follow each other and together are the document, to the character.

    Args:
        paths: files, wildcards or lists of them; see `Paths`.
        separator: what stands between documents and belongs to none: a text such as `<|endoftext|>`,
            or `BLANK_LINES` for documents of one paragraph. None: each file is one document.
        max_chars: longer documents are cut, at the end of a paragraph if there is one, else of a line,
            a sentence, a word. None cuts nothing.

    Raises:
        ConfigError: nothing matches, or a file is not UTF-8.
    """

    def __init__(
        self, paths: Paths, separator: str | None = None, max_chars: int | None = None
    ) -> None:
        if separator == "" or (max_chars is not None and max_chars < 1):
            raise ConfigError(
                f"separator is {separator!r} and max_chars is {max_chars}: give a text and a positive "
                "number, or null"
            )
        self._files = matched_files(paths)
        self._reads = FileReads(self._files)
        options = short_hash(separator, max_chars)
        write = partial(_write_index, separator=separator, max_chars=max_chars)
        self._indices = ArrowCache(f"text-1-{options}", self._files, write, "indexing")
        self._rows = Joined(self._indices.counts)
        self.fingerprint = fingerprint_of(f"text-{options}", self._files, self._indices.digests)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        number, row = self._rows.locate(index)
        places = self._indices[number]
        start, stop = int(places.numbers("start")[row]), int(places.numbers("stop")[row])
        return {
            "text": self._reads.read(number, start, stop).decode("utf-8"),
            "document": int(places.numbers("document")[row]),
            "file": self._files[number].name,
        }

    def origin(self, index: int) -> str:
        """See `Table.origin`: the number of the piece."""
        number, row = self._rows.locate(index)
        return f"{self._files[number].name}:{row + 1}"


def _write_index(
    file: DataFile,
    target: Path,
    progress: FileProgress,
    separator: str | None,
    max_chars: int | None,
) -> None:
    columns = {name: array("q") for name in ("start", "stop", "document")}
    content_hash = hashlib.blake2b(digest_size=16)
    if file.size:
        with (
            file.path.open("rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            for at in range(0, len(content), _HASHED):
                content_hash.update(content[at : at + _HASHED])
            for document, (first, last) in enumerate(_documents(content, separator)):
                at = first
                for size in _pieces(content, first, last, max_chars, file):
                    for name, value in zip(columns, (at, at + size, document), strict=True):
                        columns[name].append(value)
                    at += size
                    progress.advance(size)
    arrays = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    batch = pa.record_batch(arrays)
    write_arrow(
        target,
        batch.schema,
        [batch],
        {"digest": content_hash.hexdigest()},
        rows_per_batch=max(1, batch.num_rows),  # columns are looked at as a whole
    )


def _documents(content: mmap.mmap, separator: str | None) -> Iterator[tuple[int, int]]:
    """First byte of each document that is not blank, and the byte after its last."""
    at = len(_BOM) if content[: len(_BOM)] == _BOM else 0
    separators: Iterator[tuple[int, int]] = iter(())
    if separator is not None:
        pattern = _BLANK_LINES if separator == BLANK_LINES else re.escape(separator.encode())
        separators = (found.span() for found in re.finditer(pattern, content))
    for end, following in chain(separators, [(len(content), len(content))]):
        if end > at and not _is_blank(content, at, end):
            yield at, end
        at = following


def _is_blank(content: mmap.mmap, first: int, last: int) -> bool:
    return all(not content[at : min(at + 4096, last)].strip() for at in range(first, last, 4096))


def _pieces(
    content: mmap.mmap, first: int, last: int, max_chars: int | None, file: DataFile
) -> Iterator[int]:
    """Sizes in bytes of the pieces of a document."""
    at = first
    while at < last:
        stop = last if max_chars is None else min(last, at + 4 * max_chars)
        window = content[at:stop]
        try:
            text = window.decode("utf-8")
        except UnicodeDecodeError as error:
            cut_off = stop < last and error.end == len(window) and len(window) - error.start < 4
            if not cut_off:
                raise ConfigError(
                    f"{file.name}: byte {at + error.start} is not UTF-8; convert it, for example with "
                    "`iconv -f latin1 -t utf-8`"
                ) from error
            text = window[: error.start].decode("utf-8")
        if max_chars is not None and (len(text) > max_chars or stop < last):
            text = text[: _cut(text, max_chars)]
        size = len(text.encode("utf-8"))
        yield size
        at += size


def _cut(text: str, max_chars: int) -> int:
    """Where the first piece of a text ends, at most `max_chars` on and in its second half if it can be."""
    for pattern in _CUTS:
        ends = [found.end() for found in pattern.finditer(text, max_chars // 2, max_chars)]
        if ends:
            return ends[-1]
    return min(max_chars, len(text))
