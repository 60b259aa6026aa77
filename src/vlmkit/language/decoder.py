"""Embedding, decoder layers, final norm and head of a Qwen3 language model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.attention.base import Attention
from vlmkit.batch import Segments
from vlmkit.language.attention import GroupedQueryAttention
from vlmkit.language.kv_cache import KVCache, LayerPast
from vlmkit.language.layers import FeedForward, RMSNorm, RouterStats
from vlmkit.position.mrope import Rotary


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each on a residual branch."""

    def __init__(
        self,
        hidden_dim: int,
        attention: GroupedQueryAttention,
        feed_forward: FeedForward,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(hidden_dim, norm_eps)
        self.attention = attention
        self.feed_forward_norm = RMSNorm(hidden_dim, norm_eps)
        self.feed_forward = feed_forward

    def reset_parameters(self) -> None:
        """Fill the parameters with initial values."""
        for part in (
            self.attention_norm,
            self.attention,
            self.feed_forward_norm,
            self.feed_forward,
        ):
            part.reset_parameters()

    def forward(
        self,
        hidden: Tensor,
        rotary: Rotary,
        segments: Segments,
        padding_mask: Tensor | None = None,
        cache: LayerPast | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """(batch, seq, dim) -> (batch, seq, dim), and what the router did, if there is one."""
        hidden = hidden + self.attention(self.attention_norm(hidden), rotary, segments, cache)
        added, stats = self.feed_forward(self.feed_forward_norm(hidden), padding_mask)
        return hidden + added, stats


class Decoder(nn.Module):
    """A Qwen3 decoder, dense or mixture of experts according to the feed-forward it is given.

    Layers are keyed by their global index, so that names stay the same when a pipeline splits them.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        feed_forward: Callable[[], FeedForward],
        attention: Attention,
        tie_embeddings: bool,
        norm_eps: float = 1e-6,
        init_std: float = 0.02,
    ) -> None:
        """Build the decoder.

        Args:
            vocab_size: rows of the embedding, padding rows included.
            hidden_dim: width.
            num_layers: decoder layers.
            num_heads: query heads.
            num_kv_heads: key and value heads.
            head_dim: width of a head.
            feed_forward: makes the feed-forward half of one layer.
            attention: back end.
            tie_embeddings: whether the head reuses the embedding's weight.
            norm_eps: epsilon of all RMSNorms.
            init_std: of the embedding, the head, and what reads the residual stream; what writes to it starts
                at 0.02. The published 0.02 suits widths of thousands: a width of 128 learns to attend far
                sooner from 0.07.
        """
        super().__init__()
        self.init_std = init_std
        self.vocab_size, self.hidden_dim, self.num_layers = vocab_size, hidden_dim, num_layers
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.embedding = nn.Embedding(vocab_size, hidden_dim)
        self.layers = nn.ModuleDict(
            {
                str(i): DecoderLayer(
                    hidden_dim,
                    GroupedQueryAttention(
                        hidden_dim, num_heads, num_kv_heads, head_dim, attention, norm_eps
                    ),
                    feed_forward(),
                    norm_eps,
                )
                for i in range(num_layers)
            }
        )
        self.norm = RMSNorm(hidden_dim, norm_eps)
        self.head = None if tie_embeddings else nn.Linear(hidden_dim, vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, dim): the head's own weight, or the embedding's when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def reset_parameters(self) -> None:
        """Fill the parameters with initial values."""
        nn.init.normal_(self.embedding.weight, std=self.init_std)
        for layer in self.layers.values():
            layer.reset_parameters()  # type: ignore[operator]
            for name, parameter in layer.named_parameters():
                if parameter.ndim > 1 and "o_proj" not in name and "down_proj" not in name:
                    with torch.no_grad():
                        parameter.mul_(self.init_std / 0.02)
        self.norm.reset_parameters()
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=self.init_std)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim), normalised -> (..., vocab)."""
        return F.linear(hidden, self.head_weight)

    def new_cache(
        self,
        rows: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        slots: int | None = None,
    ) -> KVCache:
        """An empty cache for `rows` sequences of at most `capacity` tokens, with memory for `slots`."""
        weight = self.embedding.weight
        return KVCache(
            num_layers=self.num_layers,
            rows=rows,
            capacity=capacity,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=dtype or weight.dtype,
            device=weight.device,
            slots=slots,
        )
