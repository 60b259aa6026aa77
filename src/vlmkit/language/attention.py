"""Grouped-query attention with QK-norm over packed sequences."""

from __future__ import annotations

from torch import Tensor, nn

from vlmkit.attention.base import Attention
from vlmkit.batch import Segments
from vlmkit.language.kv_cache import LayerPast
from vlmkit.language.layers import RMSNorm
from vlmkit.position.mrope import Rotary, apply_rotary


class GroupedQueryAttention(nn.Module):
    """Qwen3 self-attention: no biases, RMSNorm on each query and key head before rotary.

    The width of all query heads, `num_heads * head_dim`, need not equal `hidden_dim`.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        attention: Attention,
        norm_eps: float = 1e-6,
    ) -> None:
        """Build the projections.

        Args:
            hidden_dim: decoder width.
            num_heads: query heads.
            num_kv_heads: key and value heads; must divide `num_heads`.
            head_dim: width of a head.
            attention: back end.
            norm_eps: epsilon of the query and key norms.

        Raises:
            ValueError: `num_kv_heads` does not divide `num_heads`.
        """
        super().__init__()
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads {num_heads} does not divide by num_kv_heads {num_kv_heads}"
            )
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.attention = attention
        self.q_proj = nn.Linear(hidden_dim, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_dim, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_dim, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_dim, bias=False)
        self.q_norm = RMSNorm(head_dim, norm_eps)
        self.k_norm = RMSNorm(head_dim, norm_eps)

    def reset_parameters(self) -> None:
        """Fill the parameters with initial values."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.normal_(linear.weight, std=0.02)
        self.q_norm.reset_parameters()
        self.k_norm.reset_parameters()

    def forward(
        self, x: Tensor, rotary: Rotary, segments: Segments, cache: LayerPast | None = None
    ) -> Tensor:
        """(batch, seq, dim) -> (batch, seq, dim), causal within each segment.

        Args:
            x: normalised hidden states.
            rotary: cos and sin, each (batch, seq, head_dim).
            segments: over the batch * seq tokens; with a cache, one per row of it.
            cache: past keys and values of this layer.
        """
        heads = (self.head_dim,)
        query = self.q_norm(
            self.q_proj(x).unflatten(-1, (-1, *heads))
        )  # (batch, seq, heads, head_dim)
        key = self.k_norm(self.k_proj(x).unflatten(-1, (-1, *heads)))
        value = self.v_proj(x).unflatten(-1, (-1, *heads))
        # under autocast the norms' float32 gains raise the dtype; kernels want that of the values
        query, key = (apply_rotary(part, rotary).to(value.dtype) for part in (query, key))

        if cache is not None:
            out = cache.attend(query, key, value, segments, self.attention)
        else:
            out = self.attention(
                query.flatten(0, 1),
                key.flatten(0, 1),
                value.flatten(0, 1),
                segments=segments,
                causal=True,
            )
        return self.o_proj(out.flatten(1).view(*x.shape[:2], -1))
