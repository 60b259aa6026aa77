"""Spans -> time, height and width ids; a pure function of the layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmkit.sequence import Span, VisionSpan


def mrope_position_ids(spans: Sequence[Span]) -> Tensor:
    """Time, height and width ids of every token of one sample (Qwen2-VL report, M-RoPE).

    Text counts up on all three axes at once. A vision span starts one past the largest id so far; its
    rows and columns count from there on the height and width axes, its temporal patches follow the
    offsets that the temporal encoding has set. What comes next starts one past the largest id used.

    Args:
        spans: the sample's spans in order.

    Returns:
        (3, tokens) int64, rows ordered time, height, width.
    """
    parts: list[Tensor] = []
    start = 0
    for span in spans:
        if isinstance(span, VisionSpan):
            time = torch.tensor(span.time_offsets, dtype=torch.int64)
            ids = torch.cartesian_prod(time, torch.arange(span.rows), torch.arange(span.columns)).T
            parts.append(start + ids)
            start += 1 + max(max(span.time_offsets), span.rows - 1, span.columns - 1)
        else:
            parts.append(torch.arange(start, start + span.num_tokens).expand(3, -1))
            start += span.num_tokens
    return torch.cat(parts, dim=1) if parts else torch.zeros(3, 0, dtype=torch.int64)
