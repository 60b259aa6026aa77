"""Sources of conversations, and mixing them; every sample is a pure function of (seed, index)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.order.over_length import Remedy
from vlmkit.data.order.permutation import Permutation
from vlmkit.data.record import Conversation
from vlmkit.data.sizes.size_table import SizeTable
from vlmkit.errors import ConfigError, listed

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Source(Protocol):
    """Random access to conversations."""

    def __len__(self) -> int:
        """Conversations before the source repeats; sampled sources name the size of an epoch."""
        ...

    def __getitem__(self, index: int) -> Conversation:
        """Conversation `index`, the same whoever asks and whenever.

        Raises:
            DataError: the record cannot be used; anything else is a mistake in the program.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A source in a mixture.

    Attributes:
        source: what is mixed in.
        weight: its share, relative to the others'; what it counts is the mixture's `unit`.
        temperature: also multiply the weight by the source's size to the power 1 / temperature:
            1 samples in proportion to size, larger values flatten that. None: size does not count.
        shuffle: take the samples in an order that is drawn anew for each epoch; False: in their own,
            for sources that make samples up as they go.
        text_only: counts for the mixture's `text_share`.
        over_length: what may be done to samples that do not fit into a row, in this order; what
            still does not fit is left out and counted.
        sizes: sizes of all samples, as `python -m vlmkit.stats` writes them; None measures as needed.
    """

    source: Source
    weight: float = 1.0
    temperature: float | None = None
    shuffle: bool = True
    text_only: bool = False
    over_length: tuple[Remedy, ...] | list[Remedy] = ()
    sizes: SizeTable | None = None


class Unit(Protocol):
    """What the weights of a mixture count."""

    def sample_weights(self, parts: dict[str, Weighted], weights: Floats) -> Floats:
        """Turn weights into shares of samples, not yet normalised."""
        ...


class SampleUnit:
    """A weight of 2 against 1: twice as many samples."""

    def sample_weights(self, parts: dict[str, Weighted], weights: Floats) -> Floats:
        """See `Unit.sample_weights`."""
        return weights


class EpochUnit:
    """A weight of 2: each sample of the source comes up twice while those of weight 1 come up once."""

    def sample_weights(self, parts: dict[str, Weighted], weights: Floats) -> Floats:
        """See `Unit.sample_weights`."""
        return weights * [len(part.source) for part in parts.values()]


class TokenUnit:
    """A weight of 2 against 1: twice as many tokens. Needs the sources' size tables."""

    def sample_weights(self, parts: dict[str, Weighted], weights: Floats) -> Floats:
        """See `Unit.sample_weights`."""
        missing = [name for name, part in parts.items() if part.sizes is None]
        if missing:
            raise ValueError(
                f"weights that count tokens need the sizes of all samples, {missing} have none: run "
                "python -m vlmkit.stats write_sizes=true with the same options once, and name what it "
                "wrote: data.mixture.sizes=<out>/sizes"
            )
        sizes = {name: part.sizes for name, part in parts.items() if part.sizes is not None}
        means = {name: table.mean_tokens for name, table in sizes.items()}
        if useless := [name for name, mean in means.items() if not mean]:
            raise ValueError(f"no sample of {useless} can be used: leave such sources out")
        return weights / list(means.values())


@dataclass(frozen=True)
class Located:
    """Where samples of the mixture come from; (samples,) each."""

    part: Ints  # number of the part
    position: Ints  # index within its source
    epoch: Ints


class Mixture:
    """An endless sequence of samples from several sources.

    Sample `index` depends on the seed and the index alone, so that order survives a change of workers
    or ranks and a run resumes from one integer. The sequence is cut into blocks in which each source has
    its exact share; within a source nothing is repeated before all of it has come up.

    Args:
        parts: the sources with their weights, by name.
        seed: of the order.
        unit: what weights count.
        text_share: samples that come from sources marked `text_only`; None leaves it to the weights.
        block: samples of a block at least.
        sizes: folder of size tables named like the sources, as `python -m vlmkit.stats` writes them.

    Raises:
        ConfigError: the folder holds none of the tables.
    """

    def __init__(
        self,
        parts: dict[str, Weighted],
        seed: int = 0,
        unit: Unit | None = None,
        text_share: float | None = None,
        block: int = 1000,
        sizes: str | Path | None = None,
    ) -> None:
        if sizes is not None:
            parts = with_sizes(parts, Path(sizes))
        weights = np.array([_tempered(part) for part in parts.values()], dtype=float)
        if not len(weights) or (weights < 0).any() or weights.sum() == 0:
            raise ValueError(
                f"a mixture needs sources with positive weights, got "
                f"{ {name: part.weight for name, part in parts.items()} }"
            )
        empty = [name for name, part in parts.items() if part.weight and not len(part.source)]
        if empty:
            raise ValueError(f"the sources {empty} are empty")
        self.parts = parts
        self.names = tuple(parts)
        self._list = tuple(parts.values())
        self._seed = seed
        shares = (unit or SampleUnit()).sample_weights(parts, weights)
        self.shares = _with_text_share(parts, shares / shares.sum(), text_share)
        positive = self.shares[self.shares > 0]
        # large enough that rounding a share to whole samples changes it by a hundredth at most
        self.block = int(max(block, np.ceil(50 / positive.min())))
        if self.block > 10_000_000:
            raise ValueError(f"the smallest share is {positive.min():.1g}: leave that source out")
        self.counts = _round_to(self.shares * self.block, self.block)

    def __getitem__(self, index: int) -> Conversation:
        """Sample `index` of the endless sequence.

        Raises:
            DataError: the record cannot be used.
        """
        at = self.locate(np.array([index]))
        part = int(at.part[0])
        found = self._list[part].source[int(at.position[0])]
        return replace(found, source=self.names[part])

    def locate(self, indices: Ints) -> Located:
        """Where samples come from, without fetching them."""
        blocks, places = np.divmod(indices, self.block)
        part = np.empty(len(indices), dtype=np.int64)
        drawn = np.empty(len(indices), dtype=np.int64)  # samples of the part before this one
        for block in np.unique(blocks):
            mine = blocks == block
            parts, ranks = self._block_order(int(block))
            part[mine] = parts[places[mine]]
            drawn[mine] = block * self.counts[part[mine]] + ranks[places[mine]]
        position, epoch = np.empty_like(drawn), np.empty_like(drawn)
        for number in np.unique(part):
            mine = part == number
            size = len(self._list[number].source)
            epoch[mine], place = np.divmod(drawn[mine], size)
            if not self._list[number].shuffle:
                position[mine] = place
                continue
            at = np.empty_like(place)
            for turn in np.unique(epoch[mine]):
                now = epoch[mine] == turn
                order = Permutation(size, (self._seed, int(number), int(turn)))
                at[now] = order(place[now])
            position[mine] = at
        return Located(part, position, epoch)

    @property
    def samples_per_epoch(self) -> float:
        """Samples until the source that lasts longest has come up completely once."""
        passes = [
            len(part.source) / share
            for part, share in zip(self._list, self.shares, strict=True)
            if share > 0
        ]
        return max(passes)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on; a resume with anything else would be another run."""
        return {
            "seed": self._seed,
            "block": self.block,
            "parts": {
                name: {
                    "samples": len(part.source),
                    "per_block": int(count),
                    "shuffle": part.shuffle,
                    "content": getattr(part.source, "fingerprint", None),
                }
                for (name, part), count in zip(self.parts.items(), self.counts, strict=True)
            },
        }

    def _block_order(self, block: int) -> tuple[Ints, Ints]:
        """Part of each place of a block, and how many of that part stand before it in the block."""
        return _block_order(tuple(self.counts.tolist()), self._seed, block)


@lru_cache(maxsize=8)
def _block_order(counts: tuple[int, ...], seed: int, block: int) -> tuple[Ints, Ints]:
    in_turn = np.repeat(np.arange(len(counts)), counts)
    parts = in_turn[np.random.default_rng((seed, block)).permutation(len(in_turn))]
    ranks = np.empty_like(parts)
    for number, count in enumerate(counts):
        ranks[parts == number] = np.arange(count)
    return parts, ranks


def with_sizes(parts: dict[str, Weighted], folder: Path) -> dict[str, Weighted]:
    """Parts with the tables of a folder, where it has one and they have none of their own.

    Raises:
        ConfigError: the folder has none for any of them.
    """
    files = {name: folder / f"{name}.parquet" for name in parts}
    missing = [name for name, file in files.items() if not file.is_file()]
    if len(missing) == len(parts):
        raise ConfigError(
            f"sizes={folder} holds no {listed(f'{name}.parquet' for name in missing)}: "
            "python -m vlmkit.stats write_sizes=true writes them"
        )
    for name in missing:
        logger.info("no sizes of %s in %s: its samples are planned from headers", name, folder)
    return {
        name: part
        if part.sizes is not None or name in missing
        else replace(part, sizes=SizeTable.load(files[name]))
        for name, part in parts.items()
    }


def _tempered(part: Weighted) -> float:
    if part.temperature is None:
        return part.weight
    if part.temperature <= 0:
        raise ValueError(f"temperature is {part.temperature}; it must be positive")
    return float(part.weight * len(part.source) ** (1 / part.temperature))


def _with_text_share(
    parts: dict[str, Weighted], shares: Floats, text_share: float | None
) -> Floats:
    if text_share is None:
        return shares
    is_text = np.array([part.text_only for part in parts.values()])
    if not 0 <= text_share <= 1:
        raise ValueError(f"text_share is {text_share}; it must lie between 0 and 1")
    for wanted, those in ((text_share, is_text), (1 - text_share, ~is_text)):
        if wanted and not shares[those].sum():
            kind = "text_only: true" if those is is_text else "pictures or videos"
            raise ValueError(f"text_share is {text_share}, but no source with {kind} has a weight")
    scale = np.where(
        is_text,
        text_share / max(shares[is_text].sum(), 1e-300),
        (1 - text_share) / max(shares[~is_text].sum(), 1e-300),
    )
    return shares * scale


def _round_to(values: Floats, total: int) -> Ints:
    """Whole numbers near `values` that sum to `total` (largest remainders)."""
    whole = np.floor(values).astype(np.int64)
    rest = total - int(whole.sum())
    whole[np.argsort(whole - values, kind="stable")[:rest]] += 1
    return whole
