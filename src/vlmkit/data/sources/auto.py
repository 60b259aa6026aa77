"""Opens a table by the names of its files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vlmkit.data.sources.files import Paths, matched_files
from vlmkit.data.sources.jsonl import JsonlTable
from vlmkit.data.sources.parquet import ParquetTable
from vlmkit.data.sources.table import Table
from vlmkit.data.sources.tar import TarTable
from vlmkit.data.sources.text import TextTable
from vlmkit.data.sources.tsv import TsvTable
from vlmkit.errors import ConfigError

TABLES: dict[str, Callable[[Paths], Table]] = {
    ".jsonl": JsonlTable,
    ".ndjson": JsonlTable,
    ".json": JsonlTable,
    ".parquet": ParquetTable,
    ".tar": TarTable,
    ".txt": TextTable,
    ".tsv": TsvTable,
    ".csv": partial(TsvTable, delimiter=","),
}


def open_table(paths: Paths | None) -> Table:
    """The table that the suffix of its files asks for; a class of its own takes options.

    Raises:
        ConfigError: nothing matches, the suffix is unknown, or there are several.
    """
    suffixes = {file.path.suffix.lower() for file in matched_files(paths)}
    kinds = {TABLES[suffix] for suffix in suffixes if suffix in TABLES}
    if len(kinds) != 1 or not suffixes <= set(TABLES):
        raise ConfigError(
            f"{paths} names files with the suffixes {sorted(suffixes)}: all must be of one kind, with "
            f"a suffix among {', '.join(TABLES)}"
        )
    assert paths is not None
    return kinds.pop()(paths)
