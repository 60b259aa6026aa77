"""A sample laid out as a sequence, before there are tensors: special tokens, text spans, vision spans."""

from __future__ import annotations

from dataclasses import dataclass

QWEN_RANKS = 151_643
"""Merge ranks of the full Qwen3 vocabulary; special tokens follow them."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids that structure a Qwen3-VL sequence (Qwen3 vocabulary by default)."""

    pad_id: int = 151_643
    im_start_id: int = 151_644
    im_end_id: int = 151_645
    vision_start_id: int = 151_652
    vision_end_id: int = 151_653
    image_id: int = 151_655
    video_id: int = 151_656

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return (self.im_end_id, self.pad_id)

    @property
    def placeholder_ids(self) -> tuple[int, int]:
        """Ids whose embeddings are replaced by visual features."""
        return (self.image_id, self.video_id)


def special_tokens(num_ranks: int = QWEN_RANKS) -> SpecialTokens:
    """Special ids of a vocabulary cut to its first `num_ranks` merges; they follow in the same order."""
    shift = num_ranks - QWEN_RANKS
    base = SpecialTokens()
    return SpecialTokens(**{name: value + shift for name, value in vars(base).items()})


@dataclass(frozen=True, kw_only=True)
class TextSpan:
    """A run of text tokens.

    `response` tells the scored runs of a sample apart: those of one message share a number, and a
    document is one message however many runs it is cut into.
    """

    token_ids: tuple[int, ...]
    scored: bool = False
    response: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the run."""
        return len(self.token_ids)


@dataclass(frozen=True, kw_only=True)
class VisionSpan:
    """A run of visual placeholders: an image, one frame group of a video, or a whole video.

    `time_offsets` holds one entry per temporal patch, in position ids relative to the start of the span.
    The temporal encoding sets it; position code reads it and guesses nothing.
    """

    placeholder_id: int
    rows: int  # of visual tokens, after merging
    columns: int
    time_offsets: tuple[int, ...] = (0,)

    @property
    def num_tokens(self) -> int:
        """Visual tokens of the run."""
        return len(self.time_offsets) * self.rows * self.columns


Span = TextSpan | VisionSpan
