"""The sources of the quickstart: questions about emoji, and about a short film clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmkit.assets import asset_path
from vlmkit.data.emoji import Concept, EmojiSet, Pixels
from vlmkit.data.emoji_questions import Question
from vlmkit.data.record import (
    Conversation,
    ImageArray,
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
        self.emoji, self.question, self.name, self.size, self.seed = emoji, question, name, size, seed
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
    """Stretches of a real film clip; the answers come from the cut itself.

    Args:
        name: of the source, in logs and scores.
        size: samples before the source repeats.
        seed: of the cuts.
        shortest_s: shortest stretch in seconds.
        longest_s: longest stretch in seconds.
    """

    def __init__(
        self, name: str, size: int, seed: int = 0, shortest_s: int = 1, longest_s: int = 5
    ) -> None:
        self.path = asset_path("video", "big_buck_bunny.mp4")
        self.name, self.size, self.seed = name, size, seed
        self.shortest_s, self.longest_s = shortest_s, longest_s

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        """See `Source`."""
        rng = np.random.default_rng((self.seed, index))
        length = int(rng.integers(self.shortest_s, self.longest_s + 1))
        start = round(float(rng.uniform(0, self.longest_s - length)), 2)
        clip = VideoPart(self.path, start, start + length)
        plural = "s" if length > 1 else ""
        turn = ("How long is this clip?", f"{length} second{plural}")
        return conversation(clip, (turn,), self.name, index)


def conversation(
    media: Part, turns: Sequence[tuple[str, str]], source: str, key: int
) -> Conversation:
    """One picture or clip and one or more questions with answers; `meta` holds the last."""
    messages: list[Message] = []
    for i, (question, answer) in enumerate(turns):
        asked: tuple[Part, ...] = (TextPart(question),) if i else (media, TextPart(question))
        messages += [
            Message(role="user", parts=asked),
            Message(role="assistant", parts=(TextPart(answer),)),
        ]
    question, answer = turns[-1]
    return Conversation(
        messages=tuple(messages),
        source=source,
        key=key,
        meta={"question": question, "answer": answer},
    )
