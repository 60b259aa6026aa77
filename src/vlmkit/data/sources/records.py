"""Sources of conversations made of a table, a layout and media; and parts of sources."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vlmkit.data.order.mixture import Source
from vlmkit.data.order.permutation import Permutation
from vlmkit.data.record import Conversation
from vlmkit.data.sizes.settings_key import plain
from vlmkit.data.sources.files import short_hash
from vlmkit.data.sources.layout import Layout
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Row
from vlmkit.data.sources.table import Table
from vlmkit.errors import ConfigError


class Records:
    """Your own data: rows of a table, read by a layout.

    Args:
        name: of the source, in logs and scores.
        table: where the rows are.
        layout: what a row means.
        media: where pictures and videos are; by default paths count from the working directory.
    """

    def __init__(self, name: str, table: Table, layout: Layout, media: Media | None = None) -> None:
        self.name, self.table, self.layout = name, table, layout
        self.media = Media() if media is None else media
        if not len(table):
            raise ConfigError(f"the source {name} has no rows")

    @property
    def fingerprint(self) -> str:
        """Of the table and of how it is read; where media are does not count."""
        return short_hash(self.table.fingerprint, plain(self.layout))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Conversation:
        """See `Source.__getitem__`."""
        row = Row(self.table[index], self.table.origin(index), index)
        return replace(self.layout(row, self.media), source=self.name, origin=row.origin, key=index)


class Split:
    """Rows for training, or those that are held out from it.

    One row of every `every` in a row is held out, drawn anew for each such run of rows, so that rows
    added at the end move none to the other side. Rows about the same picture may stand on both sides.

    Args:
        source: what is split.
        held_out: take the rows that are held out, instead of all others.
        every: one row of so many is held out.
        seed: of the choice; the same for both sides.
        name: of the source, in logs and scores; None keeps that of the records.
    """

    def __init__(
        self,
        source: Source,
        held_out: bool = False,
        every: int = 100,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        if every < 2:
            raise ConfigError(f"every is {every}: hold out one row of at least 2")
        self.source, self.held_out, self.every, self.seed, self.name = (
            source,
            held_out,
            every,
            seed,
            name,
        )
        runs, rest = divmod(len(source), every)
        last_holds_out = rest > self._drawn(runs)
        self._size = runs + last_holds_out if held_out else len(source) - runs - last_holds_out
        if not self._size:
            raise ConfigError(
                f"of {len(source)} rows none is on this side of the split: lower split.every, {every}"
            )

    @property
    def fingerprint(self) -> str:
        """Of the source and the split."""
        return short_hash(_fingerprint(self.source), self.held_out, self.every, self.seed)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Conversation:
        """See `Source.__getitem__`."""
        if not 0 <= index < self._size:
            raise IndexError(f"row {index} of {self._size}")
        return _named(self.source[self.position(index)], self.name)

    def position(self, index: int) -> int:
        """Row of the source."""
        if self.held_out:
            return index * self.every + self._drawn(index)
        run, at = divmod(index, self.every - 1)
        return run * self.every + at + (at >= self._drawn(run))

    def _drawn(self, run: int) -> int:
        """Which row of a run is held out."""
        return int(short_hash("held out", self.seed, run), 16) % self.every


class Subset:
    """Some rows of a source, drawn at random: the first of a shuffled order.

    With the same seed, a smaller subset lies within a larger one.

    Args:
        source: what is drawn from.
        share: of its rows, above 0 and up to 1.
        count: number of rows, instead of a share.
        seed: of the order.
        name: of the source, in logs and scores; None keeps that of the records.
    """

    def __init__(
        self,
        source: Source,
        share: float | None = None,
        count: int | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        if (share is None) == (count is None):
            raise ConfigError(f"share is {share} and count is {count}: give one of them")
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"share is {share}: it must lie above 0 and not above 1")
        self._size = math.ceil(share * len(source)) if share is not None else count or 0
        if not 0 < self._size <= len(source):
            raise ConfigError(f"{self._size} rows cannot be drawn from {len(source)}")
        self.source, self.seed, self.name = source, seed, name
        self._order = Permutation(len(source), (seed,))

    @property
    def fingerprint(self) -> str:
        """Of the source and the draw."""
        return short_hash(_fingerprint(self.source), self._size, self.seed)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Conversation:
        """See `Source.__getitem__`."""
        if not 0 <= index < self._size:
            raise IndexError(f"row {index} of {self._size}")
        position = int(self._order(np.array([index]))[0])
        return _named(self.source[position], self.name)


def _fingerprint(source: Source) -> str:
    return str(getattr(source, "fingerprint", len(source)))


def _named(conversation: Conversation, name: str | None) -> Conversation:
    return conversation if name is None else replace(conversation, source=name)
