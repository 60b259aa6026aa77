"""Keys and values of past tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmkit.batch import Segments


class LayerCache:
    """One decoder layer's part of a `KVCache`."""

    def __init__(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        self._cache = cache
        self._keys, self._values = keys, values  # (rows, capacity, kv_heads, head_dim)

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Segments]:
        """Append this step's keys and values, and return all that the queries may see.

        Args:
            key: (rows, new, kv_heads, head_dim).
            value: as `key`.

        Returns:
            keys and values of all rows laid end to end, (tokens, kv_heads, head_dim), and their
            boundaries.

        Raises:
            ValueError: the cache is full; names its capacity.
        """
        new, lengths = key.shape[1], self._cache.lengths
        if max(lengths) + new > self._cache.capacity:
            raise ValueError(
                f"the cache holds {self._cache.capacity} tokens a row; "
                f"{max(lengths)} are there and {new} more arrive"
            )
        for row, length in enumerate(lengths):
            self._keys[row, length : length + new] = key[row]
            self._values[row, length : length + new] = value[row]
        ends = [length + new for length in lengths]
        keys = torch.cat([self._keys[row, :end] for row, end in enumerate(ends)])
        values = torch.cat([self._values[row, :end] for row, end in enumerate(ends)])
        return keys, values, Segments.from_lengths(ends).to(key.device)


class KVCache:
    """Preallocated keys and values, one sequence per row; rows may differ in length."""

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
        shape = (rows, capacity, num_kv_heads, head_dim)
        self.layers = [
            LayerCache(
                self,
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(num_layers)
        ]

    def advance(self, new: int) -> None:
        """Count `new` tokens as seen in every row, after all layers have been updated."""
        self.lengths = [length + new for length in self.lengths]
