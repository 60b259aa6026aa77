"""Drawings of things that are easily told apart, and places for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops

from vlmkit.data.quickstart.emoji import ARTISTS, Concept, EmojiSet
from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.generated import Rng

NAMES = {  # what is written: name in the set
    "airplane": "airplane",
    "anchor": "anchor",
    "apple": "red apple",
    "banana": "banana",
    "bell": "bell",
    "bicycle": "bicycle",
    "butterfly": "butterfly",
    "cactus": "cactus",
    "car": "automobile",
    "carrot": "carrot",
    "cat": "cat face",
    "crown": "crown",
    "dog": "dog face",
    "fish": "fish",
    "guitar": "guitar",
    "house": "house",
    "key": "key",
    "mushroom": "mushroom",
    "penguin": "penguin",
    "rocket": "rocket",
    "scissors": "scissors",
    "snail": "snail",
    "tree": "deciduous tree",
    "umbrella": "umbrella",
}
THINGS = tuple(NAMES)
PAPERS = ("#ffffff", "#fdf3e1", "#e8f3ec", "#e9eefb", "#f8e9ef", "#f1f1ee")
"""Pale colours behind drawings."""


@lru_cache(maxsize=4)
def _set(artist: str) -> tuple[EmojiSet, dict[str, Concept]]:
    emoji = EmojiSet("all", [artist])
    return emoji, {concept.label_en: concept for concept in emoji.concepts}


@lru_cache(maxsize=512)
def drawing(thing: str, artist: str, side: int) -> Image.Image:
    """A drawing on white, cut to what is drawn, its longer side `side` pixels. Not to be changed.

    Raises:
        ConfigError: it is none of `THINGS`.
    """
    if thing not in NAMES:
        raise ConfigError(f"{thing} is none of the things that are drawn: {', '.join(THINGS)}")
    emoji, concepts = _set(artist)
    image = Image.fromarray(emoji.picture(concepts[NAMES[thing]], artist))
    image = image.crop(_ink(image))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    return image.crop(_ink(image))


def paste(canvas: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """Put a drawing on a canvas; its white is transparent."""
    box = (left, top, left + image.width, top + image.height)
    canvas.paste(ImageChops.multiply(canvas.crop(box), image), box)


def places(
    rng: Rng, sizes: Sequence[tuple[int, int]], width: int, height: int, gap: int = 6
) -> list[tuple[int, int]]:
    """Left upper corners at which things of these sizes do not touch.

    Args:
        rng: of the places.
        sizes: width and height of each thing.
        width: of the canvas.
        height: of the canvas.
        gap: pixels between two things, and to the edge.

    Raises:
        ConfigError: they do not fit.
    """
    for _ in range(50):
        taken = np.zeros((0, 4), dtype=int)
        for across, down in sizes:
            if across + 2 * gap > width or down + 2 * gap > height:
                break
            for _ in range(200):
                left = int(rng.integers(gap, width - across - gap + 1))
                top = int(rng.integers(gap, height - down - gap + 1))
                box = np.array([left, top, left + across, top + down])
                after, before = taken[:, :2] >= box[2:] + gap, taken[:, 2:] + gap <= box[:2]
                if np.logical_or(after, before).any(axis=1).all():
                    taken = np.vstack([taken, box])
                    break
            else:
                break
        if len(taken) == len(sizes):
            return [(int(left), int(top)) for left, top in taken[:, :2]]
    raise ConfigError(
        f"{len(sizes)} things of up to {max(max(size) for size in sizes)} pixels do not fit on "
        f"{width}x{height} pixels: take fewer, smaller ones, or a larger picture"
    )


def any_artist(rng: Rng) -> str:
    """One of those whose drawings ship."""
    return ARTISTS[int(rng.integers(len(ARTISTS)))]


def _ink(image: Image.Image) -> tuple[int, int, int, int]:
    """The box of what is not white."""
    inked = np.less(np.asarray(image), 245).any(axis=2)
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
