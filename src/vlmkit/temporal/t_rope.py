"""Time ids carry the seconds."""

from __future__ import annotations

import math

from vlmkit.sequence import VisionSpan
from vlmkit.temporal.base import Clip, single_run


class TRoPE:
    """One visual run for the whole clip; time ids are proportional to seconds (Qwen2.5-VL, T-RoPE).

    Patch i, at t_i seconds, has time id floor((t_i - t_0) * tokens_per_second). What follows the clip
    starts one past the largest id, as in the original definition (transformers 5 differs).
    """

    def __init__(self, tokens_per_second: float = 2.0) -> None:
        if tokens_per_second <= 0:
            raise ValueError(f"tokens_per_second must be positive, got {tokens_per_second}")
        self.tokens_per_second = tokens_per_second

    def layout(self, clip: Clip, key: int) -> list[str | VisionSpan]:
        """See `TemporalEncoding.layout`."""
        start = clip.times_s[0]
        # rounded first: 1.9999999 ids, from a clock in microseconds, are 2
        return single_run(
            clip,
            tuple(
                math.floor(round((time - start) * self.tokens_per_second, 4))
                for time in clip.times_s
            ),
        )
