"""torch's scaled_dot_product_attention, one call per group of equally long segments."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmkit.batch import Segments


class SDPAAttention:
    """Runs on every device, forward and backward; the reference for the other back ends.

    Cost is the sum of squared segment lengths: no mask over the whole pack ever exists. Segments of
    one length, as the frames of a video, are stacked into one call.
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
        """See `vlmkit.attention.base.Attention`."""
        key_segments = key_segments or segments
        groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for i, lengths in enumerate(zip(segments.lengths, key_segments.lengths, strict=True)):
            groups[lengths].append(i)

        if len(groups) == 1:
            ((q_len, k_len),) = groups
            count = len(segments.lengths)
            out = _attend(
                query.unflatten(0, (count, q_len)),
                key.unflatten(0, (count, k_len)),
                value.unflatten(0, (count, k_len)),
                causal,
            )
            return out.flatten(0, 1)

        queries = query.split(segments.lengths)
        keys, values = key.split(key_segments.lengths), value.split(key_segments.lengths)
        results: list[Tensor] = [query] * len(queries)
        for members in groups.values():
            out = _attend(
                _stacked([queries[i] for i in members]),
                _stacked([keys[i] for i in members]),
                _stacked([values[i] for i in members]),
                causal,
            )
            for i, row in zip(members, out.unbind(), strict=True):
                results[i] = row
        return torch.cat(results)


def _stacked(parts: list[Tensor]) -> Tensor:
    """One behind the other; a single one is not copied."""
    return torch.stack(parts) if len(parts) > 1 else parts[0][None]


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """(count, length, heads, head_dim) each -> (count, q_length, heads, head_dim)."""
    q_len, k_len = query.shape[1], key.shape[1]
    mask = None
    if causal and 1 < q_len < k_len:
        # Query i of a later chunk sees the cache and the chunk up to itself; torch's is_causal would
        # align the first query with the first key instead.
        mask = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device).tril(k_len - q_len)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and q_len == k_len,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return out.transpose(1, 2)
