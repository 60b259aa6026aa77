"""Questions about the shipped pictures, one class each.

Pictures, names, tags and groups are made by others; where several are laid out on a canvas, the layout
is generated, and so is the exact answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vlmkit.data.quickstart.emoji import Concept, EmojiSet, Pixels

Rng = np.random.Generator
Draw = Callable[[Concept], Pixels]
"""Gives a drawing of a concept, by an artist drawn at random."""

CELLS = 9
"""Places on a canvas, three by three."""


@dataclass(frozen=True)
class Asked:
    """A picture with questions and their answers, in turns."""

    pixels: Pixels
    turns: tuple[tuple[str, str], ...]


class Question(Protocol):
    """Makes one question."""

    def __call__(self, subject: Concept, emoji: EmojiSet, draw: Draw, rng: Rng) -> Asked:
        """Ask about `subject`.

        Args:
            subject: what the picture shows.
            emoji: the set that other concepts are drawn from.
            draw: gives drawings.
            rng: source of every random choice.
        """
        ...


class Name:
    """What is this? The concept's name, in English or Chinese."""

    def __init__(self, chinese_share: float = 0.0) -> None:
        self.chinese_share = chinese_share

    def __call__(self, subject: Concept, emoji: EmojiSet, draw: Draw, rng: Rng) -> Asked:
        """See `Question`."""
        if rng.random() < self.chinese_share:
            return Asked(draw(subject), (("这是什么?", subject.label_zh),))
        return Asked(draw(subject), (("What is this?", subject.label_en),))


class Caption:
    """Describe the picture: name and human-given tags."""

    def __call__(self, subject: Concept, emoji: EmojiSet, draw: Draw, rng: Rng) -> Asked:
        """See `Question`."""
        tags = ", ".join(subject.tags_en[:3])
        return Asked(draw(subject), (("Describe the picture.", f"{subject.label_en}: {tags}"),))


class Group:
    """Which group does it belong to?"""

    def __call__(self, subject: Concept, emoji: EmojiSet, draw: Draw, rng: Rng) -> Asked:
        """See `Question`."""
        return Asked(draw(subject), (("Which group does this belong to?", subject.group),))


class Count:
    """How many pictures are there? One to `most`, on a three by three canvas."""

    def __init__(self, most: int = 6) -> None:
        self.most = most

    def __call__(self, subject: Concept, emoji: EmojiSet, draw: Draw, rng: Rng) -> Asked:
        """See `Question`."""
        number = int(rng.integers(1, self.most + 1))
        cells = rng.choice(CELLS, size=number, replace=False)
        others = [emoji.concepts[i] for i in rng.integers(len(emoji.concepts), size=number - 1)]
        sprites = dict(zip(cells.tolist(), [subject, *others], strict=True))
        canvas = lay_out({cell: draw(concept) for cell, concept in sprites.items()})
        return Asked(canvas, (("How many things are there?", str(number)),))


class Interview:
    """Several questions about one drawing, in random order: one look, several lessons.

    Args:
        questions: those to choose from; each must be about the bare drawing.
        fewest: turns at least.
    """

    def __init__(self, questions: Sequence[Question], fewest: int = 2) -> None:
        self.questions, self.fewest = tuple(questions), fewest

    def __call__(self, subject: Concept, emoji: EmojiSet, draw: Draw, rng: Rng) -> Asked:
        """See `Question`."""
        pixels = draw(subject)
        number = int(rng.integers(self.fewest, len(self.questions) + 1))
        chosen = rng.permutation(len(self.questions))[:number]
        asked = [self.questions[i](subject, emoji, lambda _: pixels, rng) for i in chosen]
        return Asked(pixels, tuple(turn for item in asked for turn in item.turns))


def lay_out(sprites: dict[int, Pixels], cell: int = 32) -> Pixels:
    """Put drawings, shrunk to `cell` pixels, on a white three by three canvas; keys are cells 0..8."""
    canvas = np.full((3 * cell, 3 * cell, 3), 255, dtype=np.uint8)
    for place, pixels in sprites.items():
        row, column = divmod(place, 3)
        step = pixels.shape[0] // cell
        shrunk = pixels.reshape(cell, step, cell, step, 3).mean(axis=(1, 3)).astype(np.uint8)
        canvas[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = shrunk
    return canvas
