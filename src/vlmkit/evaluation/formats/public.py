"""Files of a public benchmark that the user has brought: where they come from, which rows are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit.data.sources.arrow_file import Joined
from vlmkit.data.sources.auto import open_table
from vlmkit.data.sources.files import Paths, short_hash
from vlmkit.data.sources.row import Row
from vlmkit.data.sources.table import Table
from vlmkit.errors import ConfigError
from vlmkit.evaluation.asks.values import at, listed, text_of


class PublicFiles:
    """Rows of files, which say where they are from.

    Columns `file`, the name of the file without suffix, `parent`, of its folder, and `grandparent`.

    Args:
        paths: see `Paths`; the suffix says which kind of table it is.
        get_from: where to get them, for the message when they are missing.
        table: opens the files; None goes by their suffix.

    Raises:
        ConfigError: the files are not there, or cannot be read.
    """

    def __init__(self, paths: Paths, get_from: str, table: Any = None) -> None:
        try:
            self._table: Table = (table or open_table)(paths)
        except ConfigError as error:
            raise ConfigError(
                f"{error}. Get it from {get_from}, and set benchmark_root=<the folder it is in>"
            ) from error
        self.fingerprint = self._table.fingerprint

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        row = self._table[index]
        origin = self.origin(index)
        path = Path(origin.rpartition(":")[0] or origin)
        folders = {"parent": path.parent.name, "grandparent": path.parent.parent.name}
        return {"file": path.stem, **folders, **row}

    def origin(self, index: int) -> str:
        """See `Table.origin`."""
        return self._table.origin(index)


class Selected:
    """The rows of a table that have certain values. All of it is read once.

    Args:
        table: of rows.
        where: values that are kept, by column.
        filled: columns that must not be empty, such as those of pictures.

    Raises:
        ConfigError: no row has them; names the values that there are.
    """

    def __init__(
        self,
        table: Table,
        where: Mapping[str, Sequence[Any]] | None = None,
        filled: Sequence[str] = (),
    ) -> None:
        where = where or {}
        wanted = {column: {str(value) for value in values} for column, values in where.items()}
        self._table = table
        self._rows: list[int] = []
        seen: dict[str, set[str]] = {column: set() for column in wanted}
        for i in range(len(table)):
            row = Row(table[i], table.origin(i))
            values = {column: text_of(at(row, column)) or "" for column in wanted}
            for column, value in values.items():
                seen[column].add(value)
            fits = all(value in wanted[column] for column, value in values.items())
            if fits and all(at(row, column).value not in (None, "", []) for column in filled):
                self._rows.append(i)
        if not self._rows:
            there = {column: sorted(values)[:20] for column, values in seen.items()}
            empty = f" and {', '.join(filled)}" if filled else ""
            raise ConfigError(f"no row has {dict(where)}{empty}; there are {there}")
        self.fingerprint = short_hash(
            table.fingerprint,
            sorted((column, sorted(values)) for column, values in wanted.items()),
            sorted(filled),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        return self._table[self._rows[index]]

    def origin(self, index: int) -> str:
        """See `Table.origin`."""
        return self._table.origin(self._rows[index])


class Concatenated:
    """Several tables one after the other, with the name of each in a column.

    Args:
        tables: by name.
        column: where the name stands.
    """

    def __init__(self, tables: Mapping[str, Table], column: str = "set") -> None:
        self.tables, self.column = dict(tables), column
        self._names = list(self.tables)
        self._rows = Joined([len(table) for table in self.tables.values()])
        parts = ((name, table.fingerprint) for name, table in self.tables.items())
        self.fingerprint = short_hash(column, *parts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        number, row = self._rows.locate(index)
        name = self._names[number]
        return {**self.tables[name][row], self.column: name}

    def origin(self, index: int) -> str:
        """See `Table.origin`."""
        number, row = self._rows.locate(index)
        return self.tables[self._names[number]].origin(row)


class Unnested:
    """One row for each object of a list in a row, with the columns of both. All is read once.

    Args:
        table: of rows.
        column: holds a list of objects, or a text that is one.
    """

    def __init__(self, table: Table, column: str) -> None:
        self._table, self.column = table, column
        self._places = [
            (i, j)
            for i in range(len(table))
            for j in range(len(listed(Row(table[i], table.origin(i))[column])))
        ]
        self.fingerprint = short_hash(table.fingerprint, column)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`; `number` counts the objects of a list from 0."""
        i, j = self._places[index]
        row = self._table[i]
        inner = listed(Row(row, self._table.origin(i))[self.column])[j].mapping()
        outer = {name: value for name, value in row.items() if name != self.column}
        return {**outer, "number": j, **inner}

    def origin(self, index: int) -> str:
        """See `Table.origin`."""
        i, j = self._places[index]
        return f"{self._table.origin(i)} {self.column}[{j}]"
