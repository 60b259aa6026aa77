"""A packed line whose segments go on with sequences of different length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmkit.attention.base import Attention
from vlmkit.batch import Segments
from vlmkit.language.kv_cache import KVCache, LayerCache


class KVLine:
    """Fills rows of a cache that were given their slots by `KVCache.enter`: one segment, one row.

    A row may be filled by several lines, one after the other.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int]) -> None:
        """Name the rows.

        Args:
            cache: which holds them.
            rows: those that the segments go on with, in their order.
        """
        self.cache, self.rows = cache, tuple(rows)
        self.arriving: tuple[int, ...] = ()
        self.layers = [_FillingLayer(self, layer) for layer in cache.layers]

    def advance(self, new: int) -> None:
        """Count the tokens of each segment as seen."""
        assert new == sum(self.arriving)
        for row, more in zip(self.rows, self.arriving, strict=True):
            self.cache.lengths[row] += more


class _FillingLayer:
    def __init__(self, line: KVLine, layer: LayerCache) -> None:
        self._line, self._layer = line, layer

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, attention: Attention
    ) -> Tensor:
        """See `vlmkit.language.kv_cache.LayerPast`.

        Raises:
            ValueError: there is another number of segments than of rows, or a row is given more tokens
                than it has a place for.
        """
        cache, rows, arriving = self._line.cache, self._line.rows, segments.lengths
        if len(arriving) != len(rows):
            raise ValueError(
                f"a line of {len(arriving)} segments cannot go on with {len(rows)} rows"
            )
        self._line.arriving = arriving
        starts = [cache.begins[row] + cache.lengths[row] for row in rows]
        stops = [start + new for start, new in zip(starts, arriving, strict=True)]
        if max(stops) > cache.end:
            raise ValueError(
                f"segments of {list(arriving)} tokens do not fit rows that end at {cache.end}: "
                f"they begin at {starts}"
            )
        for line, stored in ((key[0], self._layer.stored[0]), (value[0], self._layer.stored[1])):
            parts = line.split(arriving)
            for row, start, stop, part in zip(rows, starts, stops, parts, strict=True):
                stored[row, :, start:stop] = part.transpose(0, 1)
        seen_keys, seen_values, key_segments = key[0], value[0], segments
        if any(cache.lengths[row] for row in rows):
            lengths = [cache.lengths[row] + new for row, new in zip(rows, arriving, strict=True)]
            seen_keys, seen_values = (
                part.to(key.dtype) for part in self._layer.laid_out(rows, stops)
            )
            key_segments = Segments.from_lengths(lengths).to(key.device)
        return attention(
            query[0],
            seen_keys,
            seen_values,
            segments=segments,
            key_segments=key_segments,
            causal=True,
        )


class KVBranches:
    """Several continuations of one row at once, each blind to the others; the cache stays as it is."""

    def __init__(self, cache: KVCache) -> None:
        """Take the past.

        Args:
            cache: one row.
        """
        assert cache.rows == 1
        self.layers = [_BranchingLayer(layer, cache) for layer in cache.layers]

    def advance(self, new: int) -> None:
        """Nothing is kept."""


class _BranchingLayer:
    def __init__(self, layer: LayerCache, cache: KVCache) -> None:
        self._layer, self._length, self._end = layer, cache.lengths[0], cache.end

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, attention: Attention
    ) -> Tensor:
        """See `vlmkit.language.kv_cache.LayerPast`."""
        lengths = [self._length + new for new in segments.lengths]
        past = self._layer.laid_out([0], [self._end])
        keys, values = (
            torch.cat([x for own in line[0].split(segments.lengths) for x in (seen.to(line), own)])
            for line, seen in zip((key, value), past, strict=True)
        )
        return attention(
            query[0],
            keys,
            values,
            segments=segments,
            key_segments=Segments.from_lengths(lengths).to(key.device),
            causal=True,
        )
