"""Chooses the back end by what the tensors are, and says which one it chose."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from vlmkit.attention.base import Attention, UnsupportedAttentionError
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.attention.varlen import VarlenAttention, check_flash_inputs
from vlmkit.batch import Segments

log = logging.getLogger(__name__)


class AutoAttention:
    """varlen on CUDA in half precision, SDPA per segment elsewhere; each choice is logged once."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[str, torch.dtype, int], Attention] = {}

    def _choose(self, query: Tensor) -> Attention:
        try:
            check_flash_inputs("varlen", query)
            chosen: Attention = VarlenAttention()
        except UnsupportedAttentionError:
            chosen = SDPAAttention()
        log.info(
            "attention: %s for head_dim %d in %s on %s",
            type(chosen).__name__,
            query.shape[-1],
            str(query.dtype).removeprefix("torch."),
            query.device.type,
        )
        return chosen

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
        kind = (query.device.type, query.dtype, query.shape[-1])
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(query)
        return self._chosen[kind](
            query, key, value, segments=segments, key_segments=key_segments, causal=causal
        )
