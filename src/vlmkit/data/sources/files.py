"""Which files a pattern names, and reading stretches of them from any process."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.errors import ConfigError

Paths = str | Path | Sequence[str | Path]
"""One or more files. A name may hold wildcards (`a/*.jsonl`, `a/**/*.jsonl`) and braces (`{000..009}`)."""

COMPRESSED = {
    ".gz": "gunzip",
    ".tgz": "gunzip",
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".zst": "unzstd",
    ".zip": "unzip",
}
"""Suffixes of files in which a row cannot be found without reading all before it."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_OPEN_FILES = 64


@dataclass(frozen=True)
class DataFile:
    """A file as it stood when the table was made.

    Attributes:
        path: absolute.
        name: as the user wrote it, for messages.
    """

    path: Path
    name: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, name: str) -> DataFile:
        """Look at a file."""
        stat = os.stat(name)
        return cls(Path(name).absolute(), name, stat.st_size, stat.st_mtime_ns)

    @property
    def state(self) -> str:
        """Changes when the file is written to."""
        return f"{self.size}-{self.mtime_ns}"


def matched_files(paths: Paths | None) -> list[DataFile]:
    """Files that patterns name: in the order of the patterns, and sorted within each.

    Raises:
        ConfigError: a pattern names nothing, a folder, a compressed file, or a file a second time.
    """
    if paths is None:
        raise ConfigError("no data file is named: set source.table.paths=<files>")
    patterns = [paths] if isinstance(paths, str | Path) else list(paths)
    if not patterns:
        raise ConfigError("no data file is named: paths is an empty list")
    names: list[str] = []
    for pattern in patterns:
        for plain in _without_braces(os.path.expanduser(str(pattern))):
            names += _matches(plain)
    first_of: dict[str, str] = {}
    for name in names:
        same = first_of.setdefault(os.path.abspath(name), name)
        if same is not name:
            raise ConfigError(
                f"{name} is named twice (as {same}): to repeat data, raise its weight in the mixture"
            )
        _refuse_compressed(name)
    return [DataFile.of(name) for name in names]


def _without_braces(pattern: str) -> Iterator[str]:
    """`a-{0..2}.tar` -> `a-0.tar`, `a-1.tar`, `a-2.tar`; `{a,b}` likewise."""
    for found in _BRACES.finditer(pattern):
        content = found[1]
        if numbers := _RANGE.fullmatch(content):
            first, last = int(numbers[1]), int(numbers[2])
            step = 1 if first <= last else -1
            width = len(numbers[1])
            choices = [f"{number:0{width}}" for number in range(first, last + step, step)]
        elif "," in content:
            choices = content.split(",")
        else:
            continue
        before, after = pattern[: found.start()], pattern[found.end() :]
        for choice in choices:
            yield from _without_braces(before + choice + after)
        return
    yield pattern


def _matches(pattern: str) -> list[str]:
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        raise ConfigError(f"{pattern} is a folder: name its files, such as '{pattern}/*.jsonl'")
    if glob.has_magic(pattern):
        found = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
        if found:
            return found
        raise ConfigError(f"no file matches {pattern} (in {os.getcwd()})")
    raise ConfigError(f"there is no file {pattern} (in {os.getcwd()}){_near(pattern)}")


def _near(name: str) -> str:
    folder, base = os.path.split(name)
    try:
        there = os.listdir(folder or ".")
    except OSError:
        return f"; nor is there a folder {folder}"
    near = difflib.get_close_matches(base, there, n=3)
    return (
        f". Did you mean {' or '.join(os.path.join(folder, item) for item in near)}?"
        if near
        else ""
    )


def _refuse_compressed(name: str) -> None:
    suffix = Path(name).suffix.lower()
    if suffix in COMPRESSED:
        raise ConfigError(
            f"{name} is compressed, and a single row of it cannot be read: unpack it once with "
            f"`{COMPRESSED[suffix]} {name}`"
        )


class FileReads:
    """Reads stretches of files. Few stay open; a process that gets a copy opens its own.

    Reading at a given place moves no shared file position, so that forked processes do not disturb
    each other.
    """

    def __init__(self, files: Sequence[DataFile]) -> None:
        self._files = files
        self._open: OrderedDict[int, _Opened] = OrderedDict()

    def read(self, number: int, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file.

        Raises:
            ConfigError: the file is not what it was when the table was made.
        """
        file = self._files[number]
        try:
            opened = self._open.get(number)
            if opened is None:
                opened = self._open[number] = _Opened(file)
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            content = _pread(opened.descriptor, stop - start, start)
        except OSError as error:
            raise ConfigError(f"{file.name} cannot be read: {error}") from error
        if len(content) != stop - start:
            raise ConfigError(f"{file.name} became shorter while it was in use: start again")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


class _Opened:
    """A file that is open until nobody uses it."""

    def __init__(self, file: DataFile) -> None:
        self.descriptor = -1
        self.descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        stat = os.fstat(self.descriptor)
        if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
            raise ConfigError(f"{file.name} was changed while it was in use: start again")

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _pread(descriptor: int, size: int, start: int) -> bytes:
    """All of a stretch: one call reads at most 2 GiB."""
    content = os.pread(descriptor, size, start)
    if len(content) == size or not content:
        return content
    parts = [content]
    while content and (done := sum(map(len, parts))) < size:
        content = os.pread(descriptor, size - done, start + done)
        parts.append(content)
    return b"".join(parts)


def short_hash(*parts: object) -> str:
    """A hash of values by what they print as, stable over processes and machines."""
    return hashlib.sha256(
        "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    ).hexdigest()[:16]


def fingerprint_of(kind: str, files: Iterable[DataFile], digests: Iterable[str]) -> str:
    """Of a table: the names of its files, their sizes and what they hold. Folders and times do not count."""
    return short_hash(
        kind,
        *((file.path.name, file.size, digest) for file, digest in zip(files, digests, strict=True)),
    )
