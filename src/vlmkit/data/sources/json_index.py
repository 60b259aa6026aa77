"""Where rows begin and end in a JSON file, found in one pass."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.sources.files import DataFile
from vlmkit.data.sources.progress import FileProgress
from vlmkit.errors import ConfigError

Read = Callable[[int, int], bytes]
"""Start and size -> bytes, fewer at the end of the file."""

_CHUNK = 1 << 23
_WHITE = b" \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]*")
_BOM = b"\xef\xbb\xbf"
_LARGEST_ELEMENT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class RowIndex:
    """Places of rows; (rows,) int64 each."""

    start: NDArray[np.int64]  # first byte
    stop: NDArray[np.int64]  # byte after the last
    line: NDArray[np.int64]  # counted from 1
    digest: str  # of the whole file


def scan_lines(read: Read, file: DataFile, progress: FileProgress) -> RowIndex:
    """Find the lines that are not blank."""
    starts_of_chunks: list[NDArray[np.int64]] = []
    firsts_of_chunks: list[NDArray[np.uint8]] = []
    content_hash = hashlib.blake2b(digest_size=16)
    at, begins = 0, True  # whether a line begins with the next byte
    while chunk := read(at, _CHUNK):
        content_hash.update(chunk)
        data = np.frombuffer(chunk, np.uint8)
        starts = np.flatnonzero(data == ord("\n")) + 1
        if begins:
            starts = np.concatenate([[0], starts])
        begins = bool(data[-1] == ord("\n"))
        if begins:
            starts = starts[:-1]
        starts_of_chunks.append(starts + at)
        firsts_of_chunks.append(data[starts])
        at += len(chunk)
        progress.advance(len(chunk))
    start = np.concatenate([np.zeros(0, np.int64), *starts_of_chunks])
    first = np.concatenate([np.zeros(0, np.uint8), *firsts_of_chunks])
    stop = np.append(start[1:], file.size)[: len(start)]
    kept = ~_blank(start, stop, first, read)
    return RowIndex(
        start=start[kept],
        stop=stop[kept],
        line=np.flatnonzero(kept) + 1,
        digest=content_hash.hexdigest(),
    )


def _blank(
    start: NDArray[np.int64], stop: NDArray[np.int64], first: NDArray[np.uint8], read: Read
) -> NDArray[np.bool_]:
    """Which lines hold white space only."""
    doubtful = np.isin(first, np.frombuffer(_WHITE, np.uint8))
    blank = doubtful & (stop - start == 1)
    for line in np.flatnonzero(doubtful & ~blank):
        blank[line] = not read(int(start[line]), int(stop[line] - start[line])).strip(_WHITE)
    return blank


def is_list(read: Read) -> bool:
    """Whether the first thing in a file is a `[`."""
    return read(0, 1 << 16).removeprefix(_BOM).lstrip(_WHITE).startswith(b"[")


def scan_list(read: Read, file: DataFile, progress: FileProgress) -> RowIndex:
    """Find the elements of one list, holding one of them in memory at a time.

    Raises:
        ConfigError: the list is damaged; names the byte.
    """
    window = _Window(read, file, progress)
    starts, stops = array("q"), array("q")
    window.expect("[")
    if window.next_character() != "]":
        while True:
            window.next_character()
            starts.append(window.position)
            window.skip_value()
            stops.append(window.position)
            if window.next_character() == "]":
                break
            window.expect(",")
    window.expect("]")
    if window.next_character():
        raise window.error("something follows the list")
    return RowIndex(
        start=np.array(starts, dtype=np.int64),
        stop=np.array(stops, dtype=np.int64),
        line=np.arange(1, len(starts) + 1),
        digest=window.content_hash.hexdigest(),
    )


class _Window:
    """A stretch of a file that moves forward. Bytes stand for themselves (Latin-1).

    All that structures JSON is ASCII, so positions in the text are positions in the file.
    """

    def __init__(self, read: Read, file: DataFile, progress: FileProgress) -> None:
        self._read, self._file, self._progress = read, file, progress
        self._decoder = json.JSONDecoder()
        self.content_hash = hashlib.blake2b(digest_size=16)
        self._text, self._base, self._at = "", 0, 0
        self._grow(max(_CHUNK, len(_BOM)))
        if self._text.startswith(_BOM.decode("latin-1")):
            self._at = len(_BOM)

    @property
    def position(self) -> int:
        """Byte of the file that comes next."""
        return self._base + self._at

    def error(self, problem: str) -> ConfigError:
        return ConfigError(
            f"{self._file.name}: not a JSON list of objects: {problem} at byte {self.position}; mend "
            "it, or write one object per line into a .jsonl"
        )

    def next_character(self) -> str:
        """The next character that is not white space, which stays; nothing at the end of the file."""
        while True:
            spaces = _SPACES.match(self._text, self._at)
            assert spaces is not None
            self._at = spaces.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow(_CHUNK):
                return ""

    def expect(self, character: str) -> None:
        """Pass a character."""
        found = self.next_character()
        if found != character:
            raise self.error(
                f"{found!r} stands where {character!r} belongs" if found else "it ends"
            )
        self._at += 1

    def skip_value(self) -> None:
        """Pass a value of any kind."""
        size = _CHUNK
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise self.error("too deeply nested values") from error
            except ValueError as error:
                if size > _LARGEST_ELEMENT or not self._grow(size):
                    raise self.error(f"{error}") from error
            else:
                length = end - self._at
                if end < len(self._text) or not self._grow(_CHUNK):  # 12 may go on as 123
                    self._at += length
                    return
            size *= 2

    def _grow(self, size: int) -> bool:
        """Drop what is passed and read on; False at the end of the file."""
        chunk = self._read(self._base + len(self._text), size)
        self._text = self._text[self._at :] + chunk.decode("latin-1")
        self._base, self._at = self._base + self._at, 0
        self.content_hash.update(chunk)
        self._progress.advance(len(chunk))
        return bool(chunk)
