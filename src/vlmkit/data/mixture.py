"""Sources of conversations, and mixing them; every sample is a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vlmkit.data.record import Conversation


class Source(Protocol):
    """Random access to conversations."""

    def __len__(self) -> int:
        """Conversations before the source repeats; sampled sources name the size of an epoch."""
        ...

    def __getitem__(self, index: int) -> Conversation:
        """Conversation `index`, the same whoever asks and whenever."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A source and its share of the samples."""

    source: Source
    weight: float = 1.0


class Mixture:
    """An endless sequence of samples from several sources.

    Sample `index` depends on the seed and the index alone, so that order survives a change of workers
    or ranks and a run resumes from one integer.

    Args:
        parts: the sources with their weights, by name.
        seed: of the order.
    """

    def __init__(self, parts: dict[str, Weighted], seed: int = 0) -> None:
        weights = np.array([part.weight for part in parts.values()], dtype=float)
        if not len(weights) or (weights < 0).any() or weights.sum() == 0:
            raise ValueError(
                f"a mixture needs sources with positive weights, got "
                f"{ {name: part.weight for name, part in parts.items()} }"
            )
        self._sources: Sequence[Source] = [part.source for part in parts.values()]
        self._shares = weights / weights.sum()
        self._seed = seed

    def __getitem__(self, index: int) -> Conversation:
        """Sample `index` of the endless sequence."""
        rng = np.random.default_rng((self._seed, index))
        source = self._sources[rng.choice(len(self._sources), p=self._shares)]
        return source[int(rng.integers(len(source)))]
