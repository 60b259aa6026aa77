"""The flash-attn package, where a user has installed it."""

from __future__ import annotations

from torch import Tensor

from vlmkit.attention.base import UnsupportedAttentionError
from vlmkit.attention.varlen import check_flash_inputs
from vlmkit.batch import Segments


class FlashAttention:
    """flash_attn_varlen_func over the whole pack."""

    def __init__(self) -> None:
        try:
            from flash_attn import flash_attn_varlen_func
        except ImportError as error:
            raise UnsupportedAttentionError(
                "attention=flash needs the flash-attn package, which is not installed; "
                "attention=varlen is the same algorithm shipped with torch"
            ) from error
        self._kernel = flash_attn_varlen_func

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
        """See `vlmkit.attention.base.Attention`."""
        check_flash_inputs("flash", query)
        key_segments = key_segments or segments
        return self._kernel(
            query,
            key,
            value,
            segments.cu_seqlens,
            key_segments.cu_seqlens,
            segments.max_length,
            key_segments.max_length,
            causal=causal,
        )
