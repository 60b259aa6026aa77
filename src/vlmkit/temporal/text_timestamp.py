"""A written timestamp before each group of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vlmkit.sequence import VisionSpan
from vlmkit.temporal.base import VISION_END, VISION_START, Clip


class TimeFormat(Protocol):
    """Seconds -> the text of a timestamp."""

    def __call__(self, time_s: float) -> str:
        """Write a time."""
        ...


class Seconds:
    """`<1.5 seconds>`, as the released models read it."""

    def __call__(self, time_s: float) -> str:
        """Write a time with one decimal; ties go to even, on the binary value."""
        return f"<{time_s:.1f} seconds>"


class HMS:
    """`<00:01:23.5>`. The report mixes such timestamps in training but prints no format; this is ours.

    Args:
        template: a format string over `hours`, `minutes` (integers) and `seconds` (float).
    """

    def __init__(self, template: str = "<{hours:02d}:{minutes:02d}:{seconds:04.1f}>") -> None:
        self.template = template

    def __call__(self, time_s: float) -> str:
        """Write a time; rounding carries into minutes and hours."""
        tenths = round(time_s * 10)
        minutes, rest = divmod(tenths, 600)
        hours, minutes = divmod(minutes, 60)
        return self.template.format(hours=hours, minutes=minutes, seconds=rest / 10)


class TextTimestamp:
    """Each temporal patch is a visual run of its own behind a written time (Qwen3-VL report).

    The time id is constant inside a patch: the digits carry the clock, text positions the order. The
    layout is that of the released models (timestamp, start marker, patches, end marker; no outer pair).

    Args:
        formats: ways to write a time; with several, one is drawn per sample.
        seed: of that draw.
    """

    def __init__(self, formats: Sequence[TimeFormat], seed: int = 0) -> None:
        if not formats:
            raise ValueError("TextTimestamp needs at least one time format")
        self.formats = tuple(formats)
        self.seed = seed

    def layout(self, clip: Clip, key: int) -> list[str | VisionSpan]:
        """See `TemporalEncoding.layout`."""
        choice = np.random.default_rng((self.seed, key)).integers(len(self.formats))
        write = self.formats[int(choice)]
        pieces: list[str | VisionSpan] = []
        for time in clip.times_s:
            pieces += [write(time) + VISION_START, clip.span((0,)), VISION_END]
        return pieces
