"""Attention of ranks that have some tokens each of one line.

The line is cut into 2 * ranks chunks, and rank r has chunks r and 2 * ranks - 1 - r: of causal attention an
early chunk is little work and a late one much, so that all ranks have equally much (Llama 3, arXiv
2407.21783, section 3.3.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from vlmkit.attention.base import Attention
from vlmkit.batch import Segments
from vlmkit.errors import ConfigError


def own_chunks(line: Tensor, dim: int, rank: int, ranks: int) -> Tensor:
    """The two chunks of a rank, one after the other.

    Args:
        line: whose `dim` divides by 2 * ranks.
        dim: of the tokens.
        rank: whose chunks.
        ranks: that share the line.
    """
    chunks = line.chunk(2 * ranks, dim)
    return torch.cat([chunks[rank], chunks[-1 - rank]], dim)


class ContextAttention(ABC):
    """An `Attention` to which each rank of a group gives the queries, keys and values of its own chunks.

    `segments` speaks of the whole line. Tokens that `segments` covers as they are, as in generation, are
    attended to as on one rank. Causal only.
    """

    def __init__(self, attention: Attention, group: dist.ProcessGroup) -> None:
        """Keep the parts.

        Args:
            attention: back end.
            group: ranks that share the line.
        """
        self.attention, self.group = attention, group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)

    def check(self, num_heads: int, num_kv_heads: int) -> None:  # noqa: B027  (most take all)
        """Make sure that the heads of a layer can be computed.

        Raises:
            ConfigError: they do not divide; names both numbers.
        """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        segments: Segments,
        key_segments: Segments | None = None,
        causal: bool,
    ) -> Tensor:
        """See `vlmkit.attention.base.Attention`.

        Raises:
            ValueError: the tokens are neither all nor an equal share of those that segments cover.
        """
        if len(query) == segments.num_tokens:
            return self.attention(
                query, key, value, segments=segments, key_segments=key_segments, causal=causal
            )
        if len(query) * self.ranks != segments.num_tokens or key_segments is not None or not causal:
            raise ValueError(
                f"{len(query)} tokens are no share of {segments.num_tokens} for causal attention on "
                f"{self.ranks} ranks"
            )
        return self.attend(query, key, value, segments)

    @staticmethod
    @abstractmethod
    def exchange(
        query_width: int, key_width: int, ranks: int, backward: bool
    ) -> list[tuple[str, int]]:
        """Collectives of a layer, for those who plan.

        Args:
            query_width: num_heads * head_dim.
            key_width: num_kv_heads * head_dim.
            ranks: that share the line.
            backward: whether a backward pass follows.

        Returns:
            Of each its kind, and how many numbers it handles for each own token: what a gather returns, what
            a reduction or an all-to-all is given.
        """

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        """Attend causally within each segment.

        Args:
            query: (own tokens, num_heads, head_dim).
            key: (own tokens, num_kv_heads, head_dim).
            value: as `key`.
            segments: of the line.

        Returns:
            (own tokens, num_heads, head_dim).
        """


ContextAttentionFactory = Callable[[Attention, dist.ProcessGroup], ContextAttention]
"""Makes one from a back end and the group of ranks."""


@dataclass(frozen=True, kw_only=True)
class KeyPlan:
    """Which keys of the line the queries of a rank see.

    Attributes:
        pieces: (rank, which of its two chunks, first token, end) of each run of keys, in order.
        segments: of the own queries.
        key_segments: of the keys, which begin where their segments do; the last query of a segment sees
            its last key.
    """

    pieces: tuple[tuple[int, int, int, int], ...]
    segments: Segments
    key_segments: Segments

    @classmethod
    def of(cls, segments: Segments, rank: int, ranks: int) -> KeyPlan:
        """That of a rank.

        Args:
            segments: of the line, whose tokens divide by 2 * ranks.
            rank: whose queries.
            ranks: that share the line.
        """
        length = segments.num_tokens // (2 * ranks)
        bounds = [0, *accumulate(segments.lengths)]
        queries, keys, pieces = [], [], []
        for chunk in (rank, 2 * ranks - 1 - rank):
            start, stop = chunk * length, (chunk + 1) * length
            first = start
            for begin, end in pairwise(bounds):
                if begin < stop and end > start:
                    seen = min(end, stop)
                    queries.append(seen - max(begin, start))
                    keys.append(seen - begin)
                    first = min(first, begin)
            pieces += [
                (
                    min(source, 2 * ranks - 1 - source),
                    int(source >= ranks),
                    max(first - source * length, 0),
                    length,
                )
                for source in range(first // length, chunk + 1)
            ]
        device = segments.cu_seqlens.device
        return cls(
            pieces=tuple(pieces),
            segments=Segments.from_lengths(queries).to(device, non_blocking=True),
            key_segments=Segments.from_lengths(keys).to(device, non_blocking=True),
        )

    def choose(self, gathered: Tensor) -> Tensor:
        """(ranks, 2, two chunks, chunk, ...) keys and values of all ranks -> (2, keys, ...)."""
        return torch.cat([gathered[r, :, half, a:b] for r, half, a, b in self.pieces], dim=1)

    def place(self, chosen: Tensor, gathered: Tensor) -> None:
        """Add to `gathered` what `choose` has taken from there."""
        lengths = [b - a for _, _, a, b in self.pieces]
        for (r, half, a, b), part in zip(self.pieces, chosen.split(lengths, dim=1), strict=True):
            gathered[r, :, half, a:b] += part


class AllGatherAttention(ContextAttention):
    """Gathers keys and values of all ranks; a rank attends with its own queries.

    One all-gather per layer, in the backward pass one reduce-scatter. With grouped queries these are few
    heads. Keys that no own query sees are left out; any number of heads will do.
    """

    def __init__(self, attention: Attention, group: dist.ProcessGroup) -> None:
        super().__init__(attention, group)
        self._plan: tuple[Segments, KeyPlan] | None = None  # of the last line: layers share it

    @staticmethod
    def exchange(
        query_width: int, key_width: int, ranks: int, backward: bool
    ) -> list[tuple[str, int]]:
        """See `ContextAttention.exchange`."""
        gathered = 2 * key_width * ranks
        return [("all-gather", gathered), *([("reduce-scatter", gathered)] if backward else [])]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        """See `ContextAttention.attend`."""
        if self._plan is None or self._plan[0] is not segments:
            self._plan = segments, KeyPlan.of(segments, self.rank, self.ranks)
        plan = self._plan[1]
        keys, values = _GatherSeen.apply(torch.stack([key, value]), plan, self.group)
        return self.attention(
            query,
            keys,
            values,
            segments=plan.segments,
            key_segments=plan.key_segments,
            causal=True,
        )


class _GatherSeen(torch.autograd.Function):
    """(2, own tokens, ...) -> (2, keys that own queries see, ...)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, plan: KeyPlan, group: dist.ProcessGroup) -> Tensor:
        ctx.plan, ctx.group, ctx.shape = plan, group, own.shape
        gathered = own.new_empty(dist.get_world_size(group) * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(gathered, own, group=group)
        return plan.choose(_by_chunk(gathered))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        whole = grad.new_zeros(dist.get_world_size(ctx.group) * ctx.shape[0], *ctx.shape[1:])
        ctx.plan.place(grad, _by_chunk(whole))
        own = grad.new_empty(ctx.shape)
        dist.reduce_scatter_tensor(own, whole, group=ctx.group)
        return own, None, None


def _by_chunk(gathered: Tensor) -> Tensor:
    """(ranks * 2, own tokens, ...) -> (ranks, 2, two chunks, chunk, ...), a view."""
    return gathered.unflatten(0, (-1, 2)).unflatten(2, (2, -1))


class UlyssesAttention(ContextAttention):
    """Ranks exchange tokens for heads: each attends over the whole line, with some of the heads.

    Two all-to-alls per layer and pass (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509). Less is
    sent than by `AllGatherAttention` where ranks are many; their number must divide that of the heads.
    """

    def check(self, num_heads: int, num_kv_heads: int) -> None:
        """See `ContextAttention.check`."""
        for name, heads in (("num_kv_heads", num_kv_heads), ("num_heads", num_heads)):
            if heads % self.ranks:
                raise ConfigError(
                    f"parallel/context_attention=ulysses: parallel.context={self.ranks} must divide "
                    f"{name}={heads} of each tensor rank; take parallel/context_attention=all_gather"
                )

    @staticmethod
    def exchange(
        query_width: int, key_width: int, ranks: int, backward: bool
    ) -> list[tuple[str, int]]:
        """See `ContextAttention.exchange`."""
        pair = [("all-to-all", query_width + 2 * key_width), ("all-to-all", query_width)]
        return 2 * pair if backward else pair

    def attend(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        """See `ContextAttention.attend`."""
        parts = [x.unflatten(1, (self.ranks, -1)) for x in (query, key, value)]
        heads = [part.shape[2] for part in parts]
        sent = torch.cat(parts, dim=2).transpose(0, 1)  # (ranks, own tokens, heads, head_dim)
        received = _Exchange.apply(sent, self.group).unflatten(1, (2, -1))
        line = torch.cat([received[:, 0], received[:, 1].flip(0)]).flatten(0, 1)
        query, key, value = line.split(heads, dim=1)
        out = self.attention(query, key, value, segments=segments, causal=True)
        early, late = out.unflatten(0, (2, self.ranks, -1)).unbind()
        sent = torch.cat([early, late.flip(0)], dim=1)  # (ranks, tokens of each, heads, head_dim)
        own: Tensor = _Exchange.apply(sent, self.group)
        return own.transpose(0, 1).flatten(1, 2)


class _Exchange(torch.autograd.Function):
    """(ranks, ...) for each rank -> (ranks, ...) from each."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchanged(sent, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _exchanged(grad, ctx.group), None


def _exchanged(sent: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received
