"""Retrieval of controllable length: one drawing among very many, found by the colour it is seen through."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from PIL import Image

from vlmkit.data.media import ImageArray
from vlmkit.data.quickstart.emoji import EmojiSet, Pixels
from vlmkit.data.record import Conversation, ImagePart, Message, Part, TextPart


class ColouredGlass:
    """Many small drawings one after the other, a few of them behind coloured glass; which is behind red?

    Drawings are real, their order and the glass generated. All come from a few concepts that are easily told
    apart, so that what is measured is finding the place, not recognising what is there.

    Args:
        emoji: artists to draw from; the set must hold the concepts of `SUBJECTS`.
        name: of the source, in logs and scores.
        size: samples before the source repeats.
        fewest: drawings in a sample at least.
        most: drawings in a sample at most.
        questions: colours asked about.
        depth: where the drawing stands that is asked about first, 0 for the first place and 1 for the last;
            None: anywhere.
        side: of a drawing, in pixels.
        seed: of every random choice.
    """

    SUBJECTS: ClassVar[dict[str, str]] = {  # name in the set: what is answered
        "cat face": "cat",
        "red apple": "apple",
        "house": "house",
        "automobile": "car",
        "sun": "sun",
        "fish": "fish",
    }
    GLASS: ClassVar[dict[str, tuple[int, int, int]]] = {
        "red": (255, 90, 90),
        "green": (100, 225, 110),
        "blue": (100, 130, 255),
        "yellow": (255, 235, 70),
    }

    def __init__(
        self,
        emoji: EmojiSet,
        name: str,
        size: int,
        fewest: int,
        most: int,
        questions: int = 4,
        depth: float | None = None,
        side: int = 32,
        seed: int = 0,
    ) -> None:
        if not len(self.GLASS) <= fewest <= most:
            raise ValueError(
                f"fewest is {fewest} and most {most}: there must be {len(self.GLASS)} drawings at "
                "least, and fewest not above most"
            )
        if not 1 <= questions <= len(self.GLASS):
            raise ValueError(f"questions is {questions}; it must lie in 1..{len(self.GLASS)}")
        self.name, self.size, self.seed = name, size, seed
        self.fewest, self.most, self.questions, self.depth = fewest, most, questions, depth
        by_label = {concept.label_en: concept for concept in emoji.concepts}
        if missing := [label for label in self.SUBJECTS if label not in by_label]:
            raise ValueError(f"the set does not hold {missing}")
        self._drawings = [
            [_scaled(emoji.picture(by_label[label], artist), side) for artist in emoji.artists]
            for label in self.SUBJECTS
        ]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        """See `Source`."""
        rng = np.random.default_rng((self.seed, index))
        count = int(rng.integers(self.fewest, self.most + 1))
        subjects = rng.integers(len(self.SUBJECTS), size=count)
        artists = rng.integers(len(self._drawings[0]), size=count)
        places = rng.choice(count, size=len(self.GLASS), replace=False).tolist()
        if self.depth is not None:
            asked = round(self.depth * (count - 1))
            places = [asked, *(place for place in places if place != asked)][: len(self.GLASS)]
        glass = dict(zip(places, rng.permutation(list(self.GLASS)).tolist(), strict=True))
        pictures: list[Part] = []
        for place in range(count):
            pixels = self._drawings[subjects[place]][artists[place]]
            if place in glass:
                tint = np.array(self.GLASS[glass[place]], dtype=np.float32) / 255
                pixels = (pixels * tint).astype(np.uint8)
            pictures.append(ImagePart(ImageArray(pixels)))
        words = list(self.SUBJECTS.values())
        messages: list[Message] = []
        for turn, place in enumerate(places[: self.questions]):
            question = TextPart(f"Behind {glass[place]}?")
            messages += [
                Message(role="user", parts=(question,) if turn else (*pictures, question)),
                Message(role="assistant", parts=(TextPart(words[subjects[place]]),)),
            ]
        return Conversation(messages=tuple(messages), source=self.name, key=index)


def _scaled(pixels: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))
