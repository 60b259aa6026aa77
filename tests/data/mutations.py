"""Ways in which files get damaged."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator


def flip_bits(content: bytearray, rng: Rng) -> bytearray:
    for at in rng.integers(0, len(content), rng.integers(1, 12)):
        content[at] ^= 1 << rng.integers(8)
    return content


def flip_the_head(content: bytearray, rng: Rng) -> bytearray:
    """Where formats keep sizes and offsets."""
    for at in rng.integers(0, min(len(content), 200), rng.integers(1, 5)):
        content[at] = rng.integers(256)
    return content


def extreme_numbers(content: bytearray, rng: Rng) -> bytearray:
    for at in rng.integers(0, len(content), rng.integers(1, 4)):
        number = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0")[
            rng.integers(4)
        ]
        content[at : at + 4] = number[: len(content) - at]
    return content


def truncate(content: bytearray, rng: Rng) -> bytearray:
    return content[: rng.integers(0, len(content))]


def zero_a_block(content: bytearray, rng: Rng) -> bytearray:
    at, size = rng.integers(0, len(content)), rng.integers(1, 600)
    content[at : at + size] = bytes(len(content[at : at + size]))
    return content


def drop_a_block(content: bytearray, rng: Rng) -> bytearray:
    at = rng.integers(0, len(content))
    del content[at : at + rng.integers(1, 300)]
    return content


def repeat_a_block(content: bytearray, rng: Rng) -> bytearray:
    at, size = rng.integers(0, len(content)), rng.integers(1, 300)
    content[at:at] = content[at : at + size]
    return content


def splice(content: bytearray, rng: Rng) -> bytearray:
    """Put one stretch of the file in the place of another."""
    source, target, size = *rng.integers(0, len(content), 2), rng.integers(1, 300)
    content[target : target + size] = content[source : source + size]
    return content


def fill_with_noise(content: bytearray, rng: Rng) -> bytearray:
    at = rng.integers(0, len(content))
    content[at : at + 64] = rng.bytes(len(content[at : at + 64]))
    return content


WAYS: tuple[Callable[[bytearray, Rng], bytearray], ...] = (
    flip_bits,
    flip_the_head,
    extreme_numbers,
    truncate,
    zero_a_block,
    drop_a_block,
    repeat_a_block,
    splice,
    fill_with_noise,
)


def mended_checksums(png: bytes) -> bytes:
    """A damaged PNG whose checksums do not tell, so that damage reaches what lies behind them."""
    parts, at = [png[:8]], 8
    while at + 8 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + length]
        parts += [png[at : at + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        at += 12 + length
    return b"".join(parts)


def damaged(content: bytes, seed: int) -> bytes:
    """The file, damaged in one to three ways; the seed decides."""
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    for way in rng.choice(len(WAYS), rng.integers(1, 4)):
        changed = WAYS[way](changed or bytearray(1), rng)
    return bytes(changed)
