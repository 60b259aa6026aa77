"""Samples -> full rows, under a budget of tokens and one of patches, with even work per row.

Everything here looks at sizes alone, in headers' numbers; nothing has been decoded yet.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.order.work import Floats, Ints, Limits, Sizes, TransformerWork

_SPREAD_UNTIL = 0.9
"""Share of the tokens that is placed for even work; the rest is chosen to fill the gaps."""

_ROOM_TO_SPARE = 0.02
"""Share of the tokens that may be given up to make work even."""

_EVEN_ENOUGH = 1.03
"""Work of the costliest row over the mean at which no more samples are swapped."""

_SAME_VISION = 0.02
"""Difference in the encoder's work, as a share of a row's, that is none when rows are dealt."""


@dataclass(frozen=True)
class Packed:
    """Rows of samples, by their place in what was packed."""

    rows: list[list[int]]
    left: list[int]  # samples that found no place, in order


def pack_all(sizes: Sizes, limits: Limits, work: TransformerWork) -> list[list[int]]:
    """Pack all samples into as few rows as the budgets allow, or one or two more.

    Args:
        sizes: of the samples; each fits into an empty row.
        limits: of a row.
        work: of a sample.
    """
    if not len(sizes):
        return []
    needed = [sizes.tokens.sum() / limits.tokens]
    if limits.patches is not None:
        needed.append(sizes.patches.sum() / limits.patches)
    num_rows = max(1, int(np.ceil(max(needed))))
    while True:
        packed = pack_rows(sizes, limits, work, num_rows, oldest_first=False)
        if not packed.left:
            return [row for row in packed.rows if row]
        num_rows += 1


def pack_rows(
    sizes: Sizes,
    limits: Limits,
    work: TransformerWork,
    num_rows: int,
    oldest_first: bool = True,
) -> Packed:
    """Fill a number of rows from a pool of samples.

    First the oldest samples, largest first, each into the row that has the least to do so far, until nine
    tenths of the tokens or of the patches are placed; so none waits for ever. Then each gap takes the
    largest sample of the pool that it can hold.

    Args:
        sizes: of the pool, in order of arrival; each fits into an empty row.
        limits: of a row.
        work: of a sample.
        num_rows: rows to fill.
        oldest_first: fill gaps from the pool; False places all samples for even work instead.

    Raises:
        ValueError: a sample alone exceeds a row.
    """
    tokens, patches, costs = sizes.tokens.tolist(), sizes.patches.tolist(), work(sizes)
    max_patches = limits.patches if limits.patches is not None else int(sizes.patches.sum()) + 1
    for i in np.flatnonzero((sizes.tokens > limits.tokens) | (sizes.patches > max_patches)):
        raise ValueError(
            f"a sample of {tokens[i]} tokens and {patches[i]} patches does not fit into a row of "
            f"{limits.tokens} tokens and {limits.patches} patches"
        )
    first = len(tokens)
    if oldest_first:
        capacity = _SPREAD_UNTIL * num_rows
        first = min(
            int(np.searchsorted(np.cumsum(sizes.tokens), capacity * limits.tokens)),
            int(np.searchsorted(np.cumsum(sizes.patches), capacity * max_patches)),
        )
        first += 1
    filling = _Rows(num_rows, limits.tokens, max_patches)
    share = np.maximum(sizes.tokens / limits.tokens, sizes.patches / max_patches)
    # The large ones decide whether all fit; among equals, those that cost more come first.
    order = np.lexsort((-costs[:first], -np.round(share[:first], 2)))
    late = filling.spread(order.tolist(), tokens, patches, costs.tolist())
    pool = sorted(late + list(range(first, len(tokens))))
    left = filling.fill_gaps(pool, tokens, patches)
    spare = _ROOM_TO_SPARE * num_rows * limits.tokens - sum(filling.tokens) if oldest_first else 0.0
    left = filling.even_out(left, tokens, patches, costs.tolist(), spare)
    return Packed(rows=[sorted(row) for row in filling.rows], left=left)


class _Rows:
    """Rows being filled."""

    def __init__(self, num_rows: int, tokens: int, patches: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(num_rows)]
        self.tokens = [tokens] * num_rows  # room left
        self.patches = [patches] * num_rows

    def spread(
        self, order: list[int], tokens: list[int], patches: list[int], costs: list[float]
    ) -> list[int]:
        """Each sample into the row with the least work that can hold it; returns those without place."""
        heap = [(0.0, row) for row in range(len(self.rows))]
        late: list[int] = []
        for sample in order:
            need, pixels = tokens[sample], patches[sample]
            passed_over: list[tuple[float, int]] = []
            while heap:
                done, row = heap[0]
                if self.tokens[row] >= need and self.patches[row] >= pixels:
                    self._put(sample, row, need, pixels)
                    heapq.heapreplace(heap, (done + costs[sample], row))
                    break
                passed_over.append(heapq.heappop(heap))
            else:
                late.append(sample)
            for entry in passed_over:
                heapq.heappush(heap, entry)
        return late

    def fill_gaps(self, pool: list[int], tokens: list[int], patches: list[int]) -> list[int]:
        """Each row takes the largest sample that it can hold, again and again; returns the rest."""
        by_size = sorted(pool, key=lambda sample: (tokens[sample], -sample))
        lengths = [tokens[sample] for sample in by_size]
        for row in sorted(range(len(self.rows)), key=lambda row: -self.tokens[row]):
            at = len(lengths)
            while at > 0 and lengths:
                at = min(at, bisect_right(lengths, self.tokens[row]))
                if not at:
                    break
                sample = by_size[at - 1]
                if patches[sample] <= self.patches[row]:
                    self._put(sample, row, tokens[sample], patches[sample])
                    del by_size[at - 1], lengths[at - 1]
                else:
                    at -= 1
        return sorted(by_size)

    def even_out(
        self,
        pool: list[int],
        tokens: list[int],
        patches: list[int],
        costs: list[float],
        to_spare: float,
    ) -> list[int]:
        """Swap samples between the costliest rows and the cheapest, as long as that helps.

        A row that no swap can help gives samples back to the pool, while enough tokens stay.

        Args:
            pool: samples without a place.
            tokens: of each sample.
            patches: of each sample.
            costs: of each sample.
            to_spare: tokens that may be given back.

        Returns:
            The pool afterwards.
        """
        work = [sum(costs[sample] for sample in row) for row in self.rows]
        stuck: set[int] = set()
        for _ in range(4 * len(self.rows)):
            limit = _EVEN_ENOUGH * sum(work) / len(work)
            high = max((r for r in range(len(work)) if r not in stuck), key=work.__getitem__)
            if work[high] <= limit:
                break
            best: tuple[float, int, int, int] | None = None
            for low in heapq.nsmallest(4, range(len(work)), key=work.__getitem__):
                for a in self.rows[high]:
                    for b in self.rows[low]:
                        moved = costs[a] - costs[b]
                        gain = min(moved, work[high] - work[low] - moved)
                        if gain <= 0 or (best is not None and gain <= best[0]):
                            continue
                        more, pixels = tokens[a] - tokens[b], patches[a] - patches[b]
                        if -self.tokens[high] <= more <= self.tokens[low] and (
                            -self.patches[high] <= pixels <= self.patches[low]
                        ):
                            best = (gain, a, b, low)
            if best is not None:
                _, a, b, low = best
                for row, out, into in ((high, a, b), (low, b, a)):
                    self._take(out, row, tokens[out], patches[out])
                    self._put(into, row, tokens[into], patches[into])
                    work[row] += costs[into] - costs[out]
                continue
            # the largest sample is what makes the row costly; of the others, give back the longest
            others = sorted(self.rows[high], key=lambda sample: costs[sample])[:-1]
            out = max(others, key=lambda sample: (tokens[sample], -sample), default=-1)
            if out >= 0 and tokens[out] <= to_spare:
                self._take(out, high, tokens[out], patches[out])
                work[high] -= costs[out]
                to_spare -= tokens[out]
                pool.append(out)
            else:
                stuck.add(high)
                if len(stuck) == len(work):
                    break
        return sorted(pool)

    def _take(self, sample: int, row: int, tokens: int, patches: int) -> None:
        self.rows[row].remove(sample)
        self.tokens[row] += tokens
        self.patches[row] += patches

    def _put(self, sample: int, row: int, tokens: int, patches: int) -> None:
        self.rows[row].append(sample)
        self.tokens[row] -= tokens
        self.patches[row] -= patches


def row_work(rows: Sequence[Sequence[int]], costs: Floats) -> Floats:
    """Work of each row."""
    return np.array([costs[list(row)].sum() for row in rows])


def deal(costs: Floats, vision: Floats, num_ranks: int) -> list[list[int]]:
    """Deal rows to ranks: equally many each (give or take one), with even work.

    Rows are taken in groups, one row per rank, that ranks process at the same time. All have about as much
    for the encoder, then all for the decoder: ranks that share weights wait for each other in both.
    Within a group the costliest row goes to the rank that has done least.

    Args:
        costs: work of each row.
        vision: the part of it that the encoder has.
        num_ranks: ranks.

    Returns:
        Rows of each rank, those with most for the encoder first.
    """
    unit = _SAME_VISION * costs.mean() if costs.any() else 1.0
    order = np.lexsort((-costs, -np.round(vision / unit)))
    total: NDArray[np.float64] = np.zeros(num_ranks)
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    for at in range(0, len(order), num_ranks):
        group: Ints = order[at : at + num_ranks]
        group = group[np.argsort(-costs[group], kind="stable")]
        for rank, row in zip(np.argsort(total, kind="stable"), group, strict=False):
            dealt[int(rank)].append(int(row))
            total[rank] += costs[row]
    return dealt
