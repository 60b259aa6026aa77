"""Examples of each kind of sample, for the tiny model."""

from __future__ import annotations

import torch

from vlmkit.data.processor import Example
from vlmkit.sequence import Span, TextSpan, VisionSpan, special_tokens

TOKENS = special_tokens(998)
PAD_ID = TOKENS.pad_id
PATCH_DIM = 3 * 2 * 16 * 16


def text(seed: int, count: int, scored: bool = False) -> TextSpan:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 900, (count,), generator=generator).tolist()
    return TextSpan(token_ids=tuple(ids), scored=scored)


def picture(rows: int, columns: int) -> VisionSpan:
    """A run of `rows` x `columns` visual tokens."""
    return VisionSpan(placeholder_id=TOKENS.image_id, rows=rows, columns=columns)


def example(spans: list[Span], grids: list[tuple[int, int, int]], seed: int) -> Example:
    count = sum(t * h * w for t, h, w in grids)
    generator = torch.Generator().manual_seed(seed)
    return Example(
        spans=tuple(spans),
        patches=torch.randn(count, PATCH_DIM, generator=generator) if grids else torch.zeros(0, 0),
        grids=tuple(grids),
        source=f"sample {seed}",
    )


def text_example(seed: int, question: int = 5, answer: int = 4) -> Example:
    return example([text(seed, question), text(seed + 50, answer, scored=True)], [], seed)


def image_example(seed: int, rows: int = 2, columns: int = 3, answer: int = 3) -> Example:
    return example(
        [text(seed, 4), picture(rows, columns), text(seed + 50, 3), text(seed + 60, answer, True)],
        [(1, 2 * rows, 2 * columns)],
        seed,
    )


def two_images_example(seed: int) -> Example:
    return example(
        [text(seed, 2), picture(1, 2), text(seed + 40, 1), picture(2, 2), text(seed + 50, 5, True)],
        [(1, 2, 4), (1, 4, 4)],
        seed,
    )


def video_example(seed: int) -> Example:
    frame = VisionSpan(placeholder_id=TOKENS.video_id, rows=2, columns=2)
    return example(
        [text(seed, 3), frame, text(seed + 30, 4), frame, text(seed + 50, 6, True)],
        [(2, 4, 4)],
        seed,
    )
