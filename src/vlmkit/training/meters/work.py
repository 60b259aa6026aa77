"""How much there is to compute in a micro-batch, from lengths and grids that the host knows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, combinations, islice

from vlmkit.batch import VLMBatch

MOST_GUESSES = 4096


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counts that the FLOPs of a model are linear in. Padding is no work.

    Floats, so that the same fields can hold means per token.
    """

    tokens: float = 0
    causal_pairs: float = 0  # half of length**2, summed over samples
    scored: float = 0  # tokens whose next token is scored
    patches: float = 0
    frames: float = 0  # temporal patches of images and videos
    frame_pairs: float = 0  # patches**2, summed over frames
    visual_tokens: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(**{name: vars(self)[name] + vars(other)[name] for name in vars(self)})


def work_of(batch: VLMBatch) -> Work:
    """Count a micro-batch; no tensor is read, only its shape."""
    lengths = sample_lengths(batch)
    frames: tuple[int, ...] = ()
    visual_tokens = 0
    if batch.vision is not None:
        frames, visual_tokens = batch.vision.segments.lengths, batch.vision.num_visual_tokens
    return Work(
        tokens=sum(lengths),
        causal_pairs=sum(length * length for length in lengths) / 2,
        scored=0 if batch.scored_index is None else len(batch.scored_index),
        patches=sum(frames),
        frames=len(frames),
        frame_pairs=sum(length * length for length in frames),
        visual_tokens=visual_tokens,
    )


def work_per_token(
    *,
    row_tokens: float,
    visual_share: float,
    scored_share: float,
    frame_tokens: float,
    merge_size: int,
) -> Work:
    """Mean work of one token of a recipe.

    Args:
        row_tokens: length of a sample; that of a row, where rows hold one sample, is the upper bound.
        visual_share: share of tokens that are visual.
        scored_share: share of tokens whose next token is scored.
        frame_tokens: visual tokens of one image or temporal patch.
        merge_size: side of the window of patches that becomes one visual token.
    """
    patches = visual_share * merge_size**2
    frame_patches = frame_tokens * merge_size**2
    return Work(
        tokens=1,
        causal_pairs=row_tokens / 2,
        scored=scored_share,
        patches=patches,
        frames=patches / frame_patches,
        frame_pairs=patches * frame_patches,
        visual_tokens=visual_share,
    )


def sample_lengths(batch: VLMBatch) -> list[int]:
    """Lengths of the segments that are not padding.

    Padding tails stand at the ends of rows. How many there are and what they add up to is known; where
    some rows have one and others have none, the first choice that adds up is taken.
    """
    lengths = list(batch.segments.lengths)
    num_tails = len(lengths) - batch.num_samples
    if not batch.num_padding or num_tails < 1:
        return lengths
    width = batch.input_ids.shape[1]
    ends = [i for i, end in enumerate(accumulate(lengths)) if end % width == 0]
    choices = islice(combinations(ends, num_tails), MOST_GUESSES)
    fitting = (c for c in choices if sum(lengths[i] for i in c) == batch.num_padding)
    shortest = tuple(sorted(ends, key=lambda i: lengths[i])[:num_tails])
    tails = set(next(fitting, shortest))
    return [length for i, length in enumerate(lengths) if i not in tails]
