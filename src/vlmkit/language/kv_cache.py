"""Keys and values of past tokens, preallocated; rows differ in length, leave, and make room for others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vlmkit.attention.base import Attention
from vlmkit.attention.cached import attend_one
from vlmkit.batch import Segments


class LayerPast(Protocol):
    """What a decoder layer knows of tokens before those of this forward pass."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, attention: Attention
    ) -> Tensor:
        """Let queries see what came before and, causally, each other.

        Args:
            query: (batch, seq, num_heads, head_dim).
            key: (batch, seq, kv_heads, head_dim).
            value: as `key`.
            segments: over the batch * seq tokens.
            attention: back end.

        Returns:
            (batch * seq, num_heads, head_dim).
        """
        ...


class Past(Protocol):
    """Past tokens of all layers, as a model sees them."""

    @property
    def layers(self) -> Sequence[LayerPast]:
        """One part per decoder layer."""
        ...

    def advance(self, new: int) -> None:
        """Count what has arrived as seen, after all layers have been updated.

        Args:
            new: tokens of each row of the batch.
        """
        ...


class LayerCache:
    """One decoder layer's part of a `KVCache`.

    Attributes:
        keys: (rows, kv_heads, capacity, head_dim), a view of the slots that are in use.
        values: as `keys`.
    """

    def __init__(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        self._cache = cache
        self.stored = [keys, values]  # (slots, kv_heads, capacity, head_dim)
        self.narrow()

    def narrow(self) -> None:
        """Look at the slots that are in use."""
        self.keys, self.values = (stored[: self._cache.rows] for stored in self.stored)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, attention: Attention
    ) -> Tensor:
        """Every row goes on by as many tokens; see `LayerPast`.

        Raises:
            ValueError: the cache is full, or the batch has other rows; names both numbers.
        """
        cache, (rows, new) = self._cache, query.shape[:2]
        if rows != cache.rows:
            raise ValueError(f"a batch of {rows} rows cannot go on with a cache of {cache.rows}")
        cache.check_room(new)
        end = cache.end
        self.keys[:, :, end : end + new] = key.transpose(1, 2)
        self.values[:, :, end : end + new] = value.transpose(1, 2)
        if new == 1:
            return self._attend_one(query[:, 0])
        key_segments = segments
        if end == 0:
            key, value = key.flatten(0, 1), value.flatten(0, 1)
        else:
            stops = [end + new] * rows
            key, value = (part.to(key.dtype) for part in self.laid_out(range(rows), stops))
            lengths = [length + new for length in cache.lengths]
            key_segments = Segments.from_lengths(lengths).to(key.device)
        return attention(
            query.flatten(0, 1),
            key,
            value,
            segments=segments,
            key_segments=key_segments,
            causal=True,
        )

    def step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`attend` for one token a row; (rows, heads, head_dim) each -> that of the queries.

        The caller has made sure that there is room.
        """
        end = self._cache.end
        self.keys[:, :, end] = key
        self.values[:, :, end] = value
        return self._attend_one(query)

    def laid_out(self, rows: Sequence[int], stops: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of rows up to a column each, end to end: (tokens, kv_heads, head_dim)."""
        places = [
            slice(self._cache.begins[row], stop) for row, stop in zip(rows, stops, strict=True)
        ]
        keys, values = (
            torch.cat(
                [kept[row, :, at].transpose(0, 1) for row, at in zip(rows, places, strict=True)]
            )
            for kept in (self.keys, self.values)
        )
        return keys, values

    def _attend_one(self, query: Tensor) -> Tensor:
        seen = slice(self._cache.first, self._cache.end + 1)
        mask = self._cache.mask
        return attend_one(
            query,
            self.keys[:, :, seen],
            self.values[:, :, seen],
            None if mask is None else mask[..., seen],
        )


class KVCache:
    """Preallocated keys and values, one sequence per row.

    Rows end at one column, whatever their lengths: a step writes one column for all of them, and only
    the mask of the columns before their beginnings differs. New rows are written so that they end there,
    too; when the columns are used up, all rows move to the left.

    Attributes:
        capacity: columns.
        slots: rows that there is memory for; those in use come first.
        begins: the column of each row's first token.
        lengths: tokens seen in each row.
        first: the column where the longest row begins.
        end: the column after every row's last token.
        layers: one part per decoder layer.
        mask: (rows, 1, 1, capacity), -inf before a row's first token; None where all rows begin together.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        rows: int,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        slots: int | None = None,
    ) -> None:
        """Allocate.

        Args:
            num_layers: decoder layers.
            rows: sequences, all of them empty.
            capacity: tokens that a row can hold.
            num_kv_heads: key and value heads.
            head_dim: width of a head.
            dtype: of keys and values.
            device: where they live.
            slots: rows to make room for; `rows` by default.
        """
        self.capacity = capacity
        self.slots = rows if slots is None else slots
        self.begins = [0] * rows
        self.lengths = [0] * rows
        self.first = self.end = 0
        self.mask: Tensor | None = None
        self._row_shape = (num_kv_heads, head_dim)
        self._like = torch.empty(0, dtype=dtype, device=device)
        self.layers = [LayerCache(self, *self._allocated()) for _ in range(num_layers)]

    @property
    def rows(self) -> int:
        """Sequences."""
        return len(self.lengths)

    def check_room(self, new: int) -> None:
        """Make sure that every row can take `new` more tokens.

        Raises:
            ValueError: names the capacity.
        """
        if self.end + new > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens a row; "
                f"{self.end} are there and {new} more arrive"
            )

    def make_room(self, new: int) -> None:
        """Move all rows to the left if `new` more tokens do not fit behind them.

        Raises:
            ValueError: that is not enough; names the capacity.
        """
        if self.end + new > self.capacity and self.first > 0:
            self._move(self.end - self.first)
        self.check_room(new)

    def advance(self, new: int) -> None:
        """Count `new` tokens of each row as seen, after all layers have been updated."""
        self.lengths = [length + new for length in self.lengths]
        self.end += new

    def enter(self, lengths: Sequence[int]) -> range:
        """Give slots to new rows, which `vlmkit.language.kv_line.KVLine` then fills.

        Nothing else may happen to the cache until they are full.

        Args:
            lengths: tokens that each will hold before the first step.

        Returns:
            Their numbers.

        Raises:
            ValueError: there are not so many slots, or a row is longer than the capacity.
        """
        if self.rows + len(lengths) > self.slots or max(lengths) > self.capacity:
            raise ValueError(
                f"the cache has {self.slots} slots of {self.capacity} tokens, {self.rows} in use; "
                f"rows of {list(lengths)} tokens do not fit"
            )
        if max(lengths) > self.end:
            self._move(max(lengths))
        entered = range(self.rows, self.rows + len(lengths))
        self.begins += [self.end - length for length in lengths]
        self.lengths += [0] * len(lengths)
        self._rows_changed()
        return entered

    def copy_row(self, source: int, rows: Sequence[int]) -> None:
        """Fill rows that were given slots for as many tokens with what another holds."""
        seen = slice(self.begins[source], self.end)
        for layer in self.layers:
            for stored in layer.stored:
                for row in rows:
                    stored[row, :, seen] = stored[source, :, seen]
        for row in rows:
            self.lengths[row] = self.lengths[source]

    def drop(self, rows: Collection[int]) -> list[int]:
        """Let rows leave; the last ones take their places.

        Returns:
            The former number of each row that is left, in their new order.
        """
        stay = [row for row in range(self.rows) if row not in rows]
        holes = sorted(row for row in rows if row < len(stay))
        movers = [row for row in stay if row >= len(stay)]
        order = list(range(len(stay)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if movers:
            seen = slice(self.first, self.end)
            to, source = (torch.tensor(i, device=self._like.device) for i in (holes, movers))
            for layer in self.layers:
                for stored in layer.stored:
                    part = stored[:, :, seen]
                    part.index_copy_(0, to, part.index_select(0, source))
        self.begins = [self.begins[row] for row in order]
        self.lengths = [self.lengths[row] for row in order]
        if not order:
            self.end = 0
        self._rows_changed()
        return order

    def resize(self, slots: int, capacity: int) -> None:
        """Take as much memory as these need; one layer after the other, so that little is held twice.

        Raises:
            ValueError: the rows do not fit.
        """
        length = self.end - self.first
        if self.rows > slots or length > capacity:
            raise ValueError(
                f"{self.rows} rows of up to {length} tokens do not fit {slots} slots of {capacity}"
            )
        seen = slice(self.first, self.end)
        self.slots, self.capacity = slots, capacity
        for layer in self.layers:
            for i, stored in enumerate(layer.stored):
                (made,) = self._allocated(1)
                made[: self.rows, :, :length] = stored[: self.rows, :, seen]
                layer.stored[i] = made
            layer.narrow()
        self._moved(length)

    def _move(self, end: int) -> None:
        """Let all rows end at another column."""
        if self.rows:
            seen, to = slice(self.first, self.end), slice(end - self.end + self.first, end)
            for layer in self.layers:
                for part in (layer.keys, layer.values):
                    part[:, :, to] = part[:, :, seen].clone()
        self._moved(end)

    def _moved(self, end: int) -> None:
        self.begins = [begin + end - self.end for begin in self.begins]
        self.end = end
        self._rows_changed()

    def _rows_changed(self) -> None:
        for layer in self.layers:
            layer.narrow()
        self.first = min(self.begins, default=0)
        self.mask = None
        if len(set(self.begins)) > 1:
            hidden = torch.arange(self.capacity) < torch.tensor(self.begins)[:, None]
            mask = torch.zeros(hidden.shape, dtype=self._like.dtype).masked_fill(hidden, -torch.inf)
            self.mask = mask[:, None, None].to(self._like.device)

    def _allocated(self, count: int = 2) -> list[Tensor]:
        """Keys and values of one layer; zeros, since what a mask hides still enters a product."""
        heads, head_dim = self._row_shape
        shape = (self.slots, heads, self.capacity, head_dim)
        return [self._like.new_zeros(shape) for _ in range(count)]
