"""What a table is: numbered rows on disk, whatever their storage."""

from __future__ import annotations

from typing import Any, Protocol


class Table(Protocol):
    """Rows by number, each a dictionary; nothing of them stays in memory.

    Tables are sent to loader processes, forked or spawned: they can be pickled, and open files as needed.
    """

    @property
    def fingerprint(self) -> str:
        """A hash of what the table holds: a run that resumes with other data has another one."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`, counted from 0, the same whoever asks and whenever.

        Raises:
            RecordError: the row is damaged.
            IndexError: there is no such row.
            ConfigError: the files are no longer what they were.
        """
        ...

    def origin(self, index: int) -> str:
        """Where row `index` stands, for people: `train.jsonl:17`, counted from 1 as editors do."""
        ...
