"""Attention of one new token per row over a cache, without copying the cache."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend_one(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Let each row's last token see its row.

    The query heads of one key head take the place of query positions: a step has none, and no key is
    repeated for grouped queries.

    Args:
        query: (rows, num_heads, head_dim).
        keys: (rows, num_kv_heads, seen, head_dim); any strides.
        values: as `keys`.
        mask: (rows, 1, 1, seen), added to the scores; None where every row sees all.

    Returns:
        (rows, num_heads, head_dim).
    """
    rows, num_heads, head_dim = query.shape
    # under autocast queries may be narrower than the cache
    grouped = query.reshape(rows, keys.shape[1], -1, head_dim).to(keys.dtype)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    return out.reshape(rows, num_heads, head_dim).to(query.dtype)
