"""The sources of the quickstart: questions about emoji, and about a short film clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from vlmkit.assets import asset_path
from vlmkit.data.media import ImageArray, VideoFile
from vlmkit.data.quickstart.emoji import Concept, EmojiSet, Pixels
from vlmkit.data.quickstart.questions import Question
from vlmkit.data.record import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    VideoPart,
)


class EmojiSource:
    """Questions about drawings; every concept of the set is asked about equally often.

    Args:
        emoji: concepts and artists to draw from.
        question: what to ask.
        name: of the source, in logs and scores.
        size: samples before the source repeats.
        seed: of every random choice.
    """

    def __init__(
        self, emoji: EmojiSet, question: Question, name: str, size: int, seed: int = 0
    ) -> None:
        self.emoji, self.question, self.name, self.size, self.seed = (
            emoji,
            question,
            name,
            size,
            seed,
        )
        self._order = np.random.default_rng(seed).permutation(len(emoji.concepts))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        """See `Source`."""
        rng = np.random.default_rng((self.seed, index))
        subject = self.emoji.concepts[self._order[index % len(self._order)]]

        def draw(concept: Concept) -> Pixels:
            return self.emoji.picture(concept, str(rng.choice(self.emoji.artists)))

        asked = self.question(subject, self.emoji, draw, rng)
        return conversation(ImagePart(ImageArray(asked.pixels)), asked.turns, self.name, index)


class ClipSource:
    """What happens in one second of a real film clip; the actions were written down by watching it.

    Training and held-out stretches start at different moments of the same film: this shows that the
    video path learns, not that it generalises to other films. All stretches are equally long, so their
    timestamps read the same and only the pixels tell.

    Args:
        name: of the source, in logs and scores.
        size: samples before the source repeats.
        held_out: every third moment, which training never starts at, instead of the others.
        seed: of the order.
    """

    ACTIONS: ClassVar[dict[float, str]] = {  # by the second at which each ends
        1.0: "coming out of its burrow",
        2.0: "standing up",
        3.0: "stretching",
        4.3: "yawning",
        5.3: "rubbing its eyes",
    }
    LENGTH_S = 1.0

    def __init__(self, name: str, size: int, held_out: bool = False, seed: int = 0) -> None:
        self.path = asset_path("video", "big_buck_bunny.mp4")
        self.name, self.size, self.seed = name, size, seed
        last = max(self.ACTIONS) - self.LENGTH_S
        moments = np.arange(0, last, 0.08).round(2).tolist()
        self._starts = [start for i, start in enumerate(moments) if (i % 3 == 2) == held_out]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        """See `Source`."""
        rng = np.random.default_rng((self.seed, index))
        start = self._starts[rng.integers(len(self._starts))]
        middle = start + self.LENGTH_S / 2
        action = next(what for end, what in self.ACTIONS.items() if middle < end)
        clip = VideoPart(VideoFile(self.path), start, start + self.LENGTH_S)
        return conversation(clip, (("What is the rabbit doing?", action),), self.name, index)


def conversation(
    media: Part, turns: Sequence[tuple[str, str]], source: str, key: int
) -> Conversation:
    """One picture or clip and one or more questions with answers."""
    messages: list[Message] = []
    for i, (question, answer) in enumerate(turns):
        asked: tuple[Part, ...] = (TextPart(question),) if i else (media, TextPart(question))
        messages += [
            Message(role="user", parts=asked),
            Message(role="assistant", parts=(TextPart(answer),)),
        ]
    return Conversation(messages=tuple(messages), source=source, key=key)
