"""Frame times -> spans and their time ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vlmkit.sequence import VisionSpan

VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A sampled video before it is laid out."""

    times_s: tuple[float, ...]  # one per temporal patch, from the file's own clock
    rows: int  # visual tokens of one temporal patch
    columns: int
    placeholder_id: int

    def span(self, time_offsets: tuple[int, ...]) -> VisionSpan:
        """A run of the clip's temporal patches with the given time ids."""
        return VisionSpan(
            placeholder_id=self.placeholder_id,
            rows=self.rows,
            columns=self.columns,
            time_offsets=time_offsets,
        )


class TemporalEncoding(Protocol):
    """Owns the layout of a video. Nothing after it guesses where frames or timestamps stand."""

    def layout(self, clip: Clip, key: int) -> list[str | VisionSpan]:
        """Lay a clip out as text and visual runs, markers included.

        Args:
            clip: the sampled video.
            key: a stable number of the sample, for encodings that choose at random.

        Returns:
            Pieces in order; all temporal patches appear once, in order.
        """
        ...


def single_run(clip: Clip, time_offsets: tuple[int, ...]) -> list[str | VisionSpan]:
    """The whole clip as one visual run between one pair of markers."""
    return [VISION_START, clip.span(time_offsets), VISION_END]
