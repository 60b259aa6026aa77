"""A pseudo-random order of n items that can be asked at any place, without a table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_ROUNDS = 6


class Permutation:
    """A bijection of 0 .. size - 1 (Feistel network over the next power of four, walking cycles).

    The whole order is a function of (seed, size): shuffling a billion items takes no memory, and
    resuming in the middle no time.

    Args:
        size: number of items.
        seed: of the order.
    """

    def __init__(self, size: int, seed: tuple[int, ...]) -> None:
        if size < 1:
            raise ValueError(f"cannot order {size} items")
        self.size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def __call__(self, places: Ints) -> Ints:
        """Items at these places; (n,) each."""
        values = places.astype(np.uint64)
        outside = np.ones(values.shape, dtype=bool)
        while outside.any():  # on average fewer than four times: the domain is at most 4x too large
            values[outside] = self._scramble(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _scramble(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half_bits) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014); sums wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
