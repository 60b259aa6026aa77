"""Short examples -> full rows, boundaries kept."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.data.processor import Example


def pack_rows(examples: Sequence[Example], row_tokens: int) -> list[list[Example]]:
    """First-fit decreasing: each example goes into the first row with room, longest first.

    Args:
        examples: to be packed; none is cut.
        row_tokens: capacity of a row.

    Raises:
        ValueError: an example alone exceeds a row; names its source and length.
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: -example.num_tokens):
        need = example.num_tokens
        if need > row_tokens:
            raise ValueError(
                f"a sample of {example.source or 'the data'} has {need} tokens, a row holds "
                f"{row_tokens}: raise data.row_tokens, or lower processor.image.max_pixels or "
                "processor.video.max_pixels"
            )
        place = next((i for i, left in enumerate(room) if left >= need), None)
        if place is None:
            rows.append([])
            room.append(row_tokens)
            place = len(rows) - 1
        rows[place].append(example)
        room[place] -= need
    return rows
