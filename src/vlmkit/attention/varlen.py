"""torch.nn.attention.varlen: flash attention over packed tokens, shipped with torch, CUDA only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlmkit.attention.base import UnsupportedAttentionError
from vlmkit.batch import Segments


class VarlenAttention:
    """One kernel launch for the whole pack; float16 and bfloat16 on CUDA."""

    def __init__(self) -> None:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise UnsupportedAttentionError(
                f"attention=varlen needs torch 2.11 or newer, this is {torch.__version__}; "
                "use attention=sdpa"
            ) from error
        self._kernel: Callable[..., Any] = varlen_attn
        self._has_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters

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
        check_flash_inputs("varlen", query)
        key_segments = key_segments or segments
        options: dict[str, Any] = {}
        if query.shape[1] != key.shape[1]:
            if self._has_gqa:
                options["enable_gqa"] = True
            else:
                group = query.shape[1] // key.shape[1]
                key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        out: Tensor = self._kernel(
            query,
            key,
            value,
            segments.cu_seqlens,
            key_segments.cu_seqlens,
            segments.max_length,
            key_segments.max_length,
            window_size=(-1, 0) if causal else (-1, -1),
            **options,
        )
        return out


def check_flash_inputs(name: str, query: Tensor) -> None:
    """Refuse what flash kernels cannot do.

    Raises:
        UnsupportedAttentionError: names the back end, what it got and what to use.
    """
    head_dim = query.shape[-1]
    usable = query.dtype in (torch.float16, torch.bfloat16)
    capable = query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0)
    if not capable or not usable or head_dim % 8 or head_dim > 256:
        raise UnsupportedAttentionError(
            f"attention={name} runs on CUDA (compute capability 8.0 or newer) in float16 or bfloat16 "
            f"with head_dim a multiple of 8 up to 256; got {query.device.type}, {query.dtype}, head_dim "
            f"{head_dim}. Use attention=sdpa, or attention=auto to choose by device."
        )
