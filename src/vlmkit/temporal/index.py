"""Time ids count temporal patches."""

from __future__ import annotations

from vlmkit.sequence import VisionSpan
from vlmkit.temporal.base import Clip, single_run


class IndexTime:
    """One visual run for the whole clip; patch i has time id i, whatever the clock says (Qwen2-VL)."""

    def layout(self, clip: Clip, key: int) -> list[str | VisionSpan]:
        """See `TemporalEncoding.layout`."""
        return single_run(clip, tuple(range(len(clip.times_s))))
