"""Keys and values of past tokens, preallocated; rows may differ in length and leave."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vlmkit.attention.base import Attention
from vlmkit.attention.cached import attend_one
from vlmkit.batch import Segments


class LayerCache:
    """One decoder layer's part of a `KVCache`."""

    def __init__(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        self._cache = cache
        self.keys, self.values = keys, values  # (rows, kv_heads, capacity, head_dim)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, attention: Attention
    ) -> Tensor:
        """Keep this step's keys and values, and let its queries see them and all that came before.

        Args:
            query: (batch, seq, num_heads, head_dim). Either `batch` is the cache's rows, each of
                which goes on by `seq` tokens; or it is one packed line, which opens all rows.
            key: (batch, seq, kv_heads, head_dim).
            value: as `key`.
            segments: over the batch * seq tokens, one per row of the cache.
            attention: back end for more than one token a row.

        Returns:
            (batch * seq, num_heads, head_dim).

        Raises:
            ValueError: the cache is full, or a packed line does not open an empty cache; names both
                numbers.
        """
        if query.shape[0] != self._cache.rows:
            self._open(key, value, segments)
        else:
            self._append(key, value)
            if query.shape[1] == 1:
                return self._attend_one(query[:, 0])
        key_segments = segments
        if any(self._cache.lengths):
            seen_keys, seen_values, key_segments = self._seen(key.shape[1])
            key, value = seen_keys.to(key.dtype), seen_values.to(value.dtype)
        else:
            key, value = key.flatten(0, 1), value.flatten(0, 1)
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

    def _attend_one(self, query: Tensor) -> Tensor:
        seen = slice(self._cache.first, self._cache.end + 1)
        mask = self._cache.mask
        return attend_one(
            query,
            self.keys[:, :, seen],
            self.values[:, :, seen],
            None if mask is None else mask[..., seen],
        )

    def _append(self, key: Tensor, value: Tensor) -> None:
        new, end = key.shape[1], self._cache.end
        self._cache.check_room(new)
        self._cache.arriving = (new,) * key.shape[0]
        self.keys[:, :, end : end + new] = key.transpose(1, 2)
        self.values[:, :, end : end + new] = value.transpose(1, 2)

    def _open(self, key: Tensor, value: Tensor, segments: Segments) -> None:
        cache, lengths = self._cache, segments.lengths
        if len(lengths) != cache.rows or any(cache.lengths):
            raise ValueError(
                f"a packed line of {len(lengths)} segments opens an empty cache of as many rows; "
                f"this one has {cache.rows} rows of {cache.lengths} tokens"
            )
        cache.check_room(max(lengths))
        cache.arriving = lengths
        width = max(lengths)
        for row, (stop, length) in enumerate(zip(accumulate(lengths), lengths, strict=True)):
            place, line = slice(width - length, width), slice(stop - length, stop)
            self.keys[row, :, place] = key[0, line].transpose(0, 1)
            self.values[row, :, place] = value[0, line].transpose(0, 1)

    def _seen(self, new: int) -> tuple[Tensor, Tensor, Segments]:
        """Keys and values of all rows laid end to end, (tokens, kv_heads, head_dim)."""
        end = self._cache.end + new
        lengths = [length + new for length in self._cache.lengths]
        keys, values = (
            torch.cat(
                [kept[row, :, end - n : end].transpose(0, 1) for row, n in enumerate(lengths)]
            )
            for kept in (self.keys, self.values)
        )
        return keys, values, Segments.from_lengths(lengths).to(keys.device)


class KVCache:
    """Preallocated keys and values, one sequence per row.

    Rows end at one column, whatever their lengths: a step writes one column for all of them, and only
    the mask of the columns before their beginnings differs.

    Attributes:
        capacity: columns.
        lengths: tokens seen in each row.
        end: the column after every row's last token.
        layers: one part per decoder layer.
        mask: (rows, 1, 1, capacity), -inf before a row's first token; None where all rows begin together.
        arriving: tokens that each row gets in the forward pass that is under way.
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
    ) -> None:
        """Allocate.

        Args:
            num_layers: decoder layers.
            rows: sequences.
            capacity: tokens that a row can hold.
            num_kv_heads: key and value heads.
            head_dim: width of a head.
            dtype: of keys and values.
            device: where they live.
        """
        self.capacity = capacity
        self.lengths = [0] * rows
        self.end = 0
        self.arriving: tuple[int, ...] = ()
        self.mask: Tensor | None = None
        shape = (rows, num_kv_heads, capacity, head_dim)
        # zeros, since what a mask hides still enters a product
        self.layers = [
            LayerCache(
                self,
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(num_layers)
        ]

    @property
    def rows(self) -> int:
        """Sequences."""
        return len(self.lengths)

    @property
    def first(self) -> int:
        """The column where the longest row begins."""
        return self.end - max(self.lengths)

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

    def advance(self, new: int) -> None:
        """Count what has arrived as seen, after all layers have been updated.

        Args:
            new: tokens of each row; for a packed line, of all rows together.
        """
        arriving = self.arriving or (new,) * self.rows
        self.arriving = ()
        self.lengths = [length + more for length, more in zip(self.lengths, arriving, strict=True)]
        self.end += max(arriving)
        if len(set(arriving)) > 1:
            self._make_mask()

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row named several times is copied."""
        index = torch.tensor(rows, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.keys = layer.keys.index_select(0, index)
            layer.values = layer.values.index_select(0, index)
        self.lengths = [self.lengths[row] for row in rows]
        self._make_mask()

    def _make_mask(self) -> None:
        self.mask = None
        if len(set(self.lengths)) > 1:
            keys = self.layers[0].keys
            begins = torch.tensor([self.end - length for length in self.lengths])
            hidden = torch.arange(self.capacity) < begins[:, None]
            mask = torch.zeros(hidden.shape, dtype=keys.dtype).masked_fill(hidden, -torch.inf)
            self.mask = mask[:, None, None].to(keys.device)
