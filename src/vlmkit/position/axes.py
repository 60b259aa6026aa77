"""Which axis (time, height, width) each rotary frequency follows."""

from __future__ import annotations

from collections.abc import Sequence

TIME, HEIGHT, WIDTH = 0, 1, 2


def chunked(section: Sequence[int]) -> list[int]:
    """Contiguous blocks of frequencies: time, then height, then width (Qwen2-VL, Qwen2.5-VL).

    Args:
        section: frequencies given to time, height and width.
    """
    _check(section)
    return [axis for axis, count in enumerate(section) for _ in range(count)]


def interleaved(section: Sequence[int]) -> list[int]:
    """Axes take turns, so that each sees the whole band of frequencies (Qwen3-VL).

    Frequency i follows height when i % 3 == 1, width when i % 3 == 2, up to their counts; the rest,
    and with it the lowest frequencies, follows time.

    Args:
        section: frequencies given to time, height and width.

    Raises:
        ValueError: the rule cannot give each axis its count, as with [2, 3, 3].
    """
    _check(section)
    axes = [
        axis if (axis := i % 3) != TIME and i < 3 * section[axis] else TIME
        for i in range(sum(section))
    ]
    counts = [axes.count(axis) for axis in (TIME, HEIGHT, WIDTH)]
    if counts != list(section):
        raise ValueError(
            f"mrope section {list(section)} cannot be interleaved: the rule gives {counts}. "
            "Give time at least as many frequencies as height and width."
        )
    return axes


def _check(section: Sequence[int]) -> None:
    if len(section) != 3 or min(section) < 0:
        raise ValueError(
            f"mrope section must be three counts (time, height, width), got {list(section)}"
        )
