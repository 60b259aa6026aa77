"""How many positions get their logits at a time."""

from __future__ import annotations

from functools import cache

import torch

from vlmkit.device_memory import GIB, total_gib

SHARE = 1 / 64  # of the device's memory, for the logits of one chunk
BYTES_PER_LOGIT = 8  # logits and their log-softmax, both float32
FEWEST, MOST = 64, 4096


@cache
def chunk_tokens_for(
    device: torch.device, vocab_size: int, bytes_per_logit: int = BYTES_PER_LOGIT
) -> int:
    """Positions per chunk: a power of two that keeps logits within a share of the device's memory.

    Of all its memory, not of what is free at the moment: where chunks end decides in which order the
    head's gradient is summed up, and a resumed run must cut as the run before it did.
    """
    budget = total_gib(device) * GIB * SHARE
    fitting = int(budget / (vocab_size * bytes_per_logit))
    power_of_two = 1 << max(fitting.bit_length() - 1, 0)
    return min(max(power_of_two, FEWEST), MOST)
