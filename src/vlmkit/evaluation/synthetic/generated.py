"""Questions from a seed. Pictures are planned at once and drawn when they are opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlmkit.data.media import FrameSequence, ImageRef
from vlmkit.data.record import Conversation, ImagePart, Message, Part, VideoPart
from vlmkit.data.sizes.settings_key import plain
from vlmkit.errors import ConfigError
from vlmkit.evaluation.question import Question

Rng = np.random.Generator

_LOOKED_AT = 4
"""Questions whose first picture counts for the fingerprint: another font engine draws other pixels."""


@dataclass(frozen=True, eq=False)
class DrawnImage:
    """A picture that is drawn when it is opened, the same each time.

    Attributes:
        draw: makes the picture; it has no random choice left.
        width: of it, in pixels.
        height: of it.
        name: for messages.
    """

    draw: Callable[[], Image.Image]
    width: int
    height: int
    name: str = "drawn picture"

    def size(self) -> tuple[int, int]:
        """See `ImageRef.size`."""
        return self.height, self.width

    def open(self) -> Image.Image:
        """See `ImageRef.open`."""
        drawn = self.draw().convert("RGB")
        assert drawn.size == (self.width, self.height), (drawn.size, self.width, self.height)
        return drawn


@dataclass(frozen=True, kw_only=True)
class Made:
    """A question that has been made up.

    Attributes:
        parts: of the user's turn.
        target: see `Question`.
        categories: see `Question`.
        meta: what a test wants to know about it; no model sees it.
    """

    parts: tuple[Part, ...]
    target: Any
    categories: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


class Kind(Protocol):
    """Makes questions of one kind: a dataclass whose fields are plain, since they are part of the spec."""

    def __call__(self, index: int, rng: Rng) -> Made:
        """Make one.

        Args:
            index: of the question, for what is to be asked equally often.
            rng: source of every random choice.
        """
        ...


class GeneratedQuestions:
    """So many questions of one kind.

    Args:
        kind: makes them.
        size: how many.
        seed: of every random choice.

    Raises:
        ConfigError: there are none.
    """

    def __init__(self, kind: Kind, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ConfigError(f"questions.size is {size}; it must be positive")
        self.kind, self.size, self.seed = kind, size, seed

    @property
    def settings(self) -> Any:
        """Of the kind, by name."""
        return described(self.kind)

    @cached_property
    def fingerprint(self) -> str:
        """Of all texts and targets, and of some pictures."""
        found = hashlib.sha256(json.dumps([self.settings, self.size, self.seed]).encode())
        looked_at = set(np.linspace(0, self.size - 1, _LOOKED_AT).astype(int).tolist())
        for i in range(self.size):
            question = self[i]
            found.update(f"{question.conversation.question}\0{question.target!r}\0".encode())
            if i in looked_at and (image := next(pictures(question.conversation), None)):
                found.update(image.open().tobytes())
        return found.hexdigest()[:16]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Question:
        """See `Questions`."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        made = self.kind(index, np.random.default_rng((self.seed, index)))
        turn = Message(role="user", parts=made.parts)
        return Question(
            key=f"{index:04}",
            conversation=Conversation(messages=(turn,), key=index, meta=dict(made.meta)),
            target=made.target,
            categories=dict(made.categories),
        )


def pictures(conversation: Conversation) -> Iterator[ImageRef]:
    """All pictures of a conversation, frames of videos that are lists of pictures included."""
    for part in conversation.parts:
        if isinstance(part, ImagePart):
            yield part.image
        elif isinstance(part, VideoPart) and isinstance(part.video, FrameSequence):
            yield from part.video.frames


def described(value: Any) -> Any:
    """A dataclass as plain values with the name of its class, and all that it holds."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: described(getattr(value, f.name)) for f in fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **own}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    return plain(value)


def child(rng: Rng) -> int:
    """A seed for something that is drawn later."""
    return int(rng.integers(2**62))


def one_of(rng: Rng, items: Sequence[Any]) -> Any:
    """One item at random, as it is; numpy would turn it into an array."""
    return items[int(rng.integers(len(items)))]


def some_of(rng: Rng, items: Sequence[Any], count: int) -> list[Any]:
    """So many different items at random, in random order."""
    return [items[i] for i in rng.permutation(len(items))[:count].tolist()]
