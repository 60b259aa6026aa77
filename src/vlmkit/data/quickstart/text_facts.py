"""What the set says about its concepts in words: the questions of the quickstart without pictures."""

from __future__ import annotations

import numpy as np

from vlmkit.data.quickstart.emoji import EmojiSet
from vlmkit.data.record import Conversation, Message, TextPart


class FactSource:
    """Questions about a concept that is described in words where a picture would stand.

    The wording is that of the questions about pictures, so that a decoder which has learned to answer from
    the words needs only to be shown what takes their place.

    Args:
        emoji: concepts to describe.
        name: of the source, in logs and scores.
        size: samples before the source repeats.
        kinds: of questions, from `name`, `group` and `caption`; all of them are asked about each concept,
            in random order.
        seed: of every random choice.

    Raises:
        ValueError: a kind is unknown.
    """

    KINDS = ("name", "group", "caption")

    def __init__(
        self,
        emoji: EmojiSet,
        name: str,
        size: int,
        kinds: tuple[str, ...] | list[str] = KINDS,
        seed: int = 0,
    ) -> None:
        if unknown := set(kinds) - set(self.KINDS):
            raise ValueError(f"kinds {sorted(unknown)} are unknown; they are {list(self.KINDS)}")
        self.emoji, self.name, self.size, self.kinds, self.seed = (
            emoji, name, size, tuple(kinds), seed,
        )  # fmt: skip
        self._order = np.random.default_rng(seed).permutation(len(emoji.concepts))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        """See `Source`."""
        rng = np.random.default_rng((self.seed, index))
        concept = self.emoji.concepts[self._order[index % len(self._order)]]
        tags = list(rng.permutation(concept.tags_en)[:4])
        description = concept.label_en if rng.random() < 0.5 else ", ".join(tags)
        asked = {
            "name": ("What is this?", concept.label_en),
            "group": ("Which group does this belong to?", concept.group),
            "caption": (
                "Describe the picture.",
                f"{concept.label_en}: {', '.join(concept.tags_en[:3])}",
            ),
        }
        messages: list[Message] = []
        for i, kind in enumerate(rng.permutation(self.kinds)):
            question, answer = asked[str(kind)]
            opening = "" if i else f"{description}\n"
            messages += [
                Message(role="user", parts=(TextPart(opening + question),)),
                Message(role="assistant", parts=(TextPart(answer),)),
            ]
        return Conversation(messages=tuple(messages), source=self.name, key=index)
