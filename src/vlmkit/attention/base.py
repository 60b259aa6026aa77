"""What every attention back end offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vlmkit.batch import Segments
from vlmkit.errors import UserError


class UnsupportedAttentionError(UserError):
    """A back end was asked for something it cannot do; nothing is substituted silently."""


class Attention(Protocol):
    """Softmax attention inside segments, scaled by head_dim ** -0.5."""

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
        """Attend within each segment.

        Args:
            query: (tokens, num_heads, head_dim).
            key: (key_tokens, num_kv_heads, head_dim); head j serves queries j * group .. (j+1) * group - 1.
            value: as `key`.
            segments: boundaries of the query tokens.
            key_segments: boundaries of the keys when they differ (a cache); the last query of a
                segment sees the last key.
            causal: whether a query sees only keys at or before its own place.

        Returns:
            (tokens, num_heads, head_dim).

        Raises:
            UnsupportedAttentionError: device, dtype or head_dim is beyond this back end.
        """
        ...
