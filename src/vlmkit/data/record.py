"""What a dataset yields: conversations and documents of text, images and videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vlmkit.data.geometry.shapes import Grounding, grounding_text
from vlmkit.data.media import ImageRef, VideoRef

Role = Literal["system", "user", "assistant", "tool", "document"]


@dataclass(frozen=True)
class TextPart:
    """Text in a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An image in a message."""

    image: ImageRef


@dataclass(frozen=True)
class VideoPart:
    """A stretch of a video in a message.

    `start_s` and `end_s` cut the stretch; None means the video's own beginning or end.
    """

    video: VideoRef
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class GroundingPart:
    """Boxes and points in a message. They know their space, and become text in one place only.

    `image` counts the conversation's images from 0: the one they are drawn on.
    """

    items: tuple[Grounding, ...]
    image: int = 0

    @property
    def text(self) -> str:
        """The published JSON, in coordinates from 0 to 1000."""
        return grounding_text(self.items)


Part = TextPart | ImagePart | VideoPart | GroundingPart


@dataclass(frozen=True)
class ToolCall:
    """A call of a function by the assistant. Arguments given as a string are written as they are."""

    name: str
    arguments: dict[str, Any] | str


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. Assistant turns and documents are scored unless `scored` says otherwise.

    A turn of role `document` is raw text and media without any chat markers, as in pre-training
    corpora; it is a conversation's only turn.
    """

    role: Role
    parts: tuple[Part, ...] = ()
    scored: bool | None = None
    thinking: str | None = None  # reasoning before the answer; assistant only
    tool_calls: tuple[ToolCall, ...] = ()  # after the parts; assistant only

    @property
    def is_scored(self) -> bool:
        """Whether the loss counts this turn."""
        return self.role in ("assistant", "document") if self.scored is None else self.scored

    @property
    def text(self) -> str:
        """The turn's text, without its media."""
        return "".join(
            part.text for part in self.parts if isinstance(part, TextPart | GroundingPart)
        )


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A sample before processing.

    Attributes:
        messages: turns in order.
        source: name of the dataset, in logs and scores.
        key: a stable integer from which anything random about the sample is derived.
        tools: signatures of the functions that the assistant may call, as JSON objects.
        origin: where the record stands, such as `train.jsonl:17`.
        meta: whatever else the dataset says about the sample.
    """

    messages: tuple[Message, ...]
    source: str = ""
    key: int = 0
    tools: tuple[dict[str, Any], ...] = ()
    origin: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        """The parts of all turns in order."""
        return [part for message in self.messages for part in message.parts]

    @property
    def answer(self) -> str:
        """Text of the last turn if it is the assistant's, else nothing."""
        last = self.messages[-1]
        return last.text if last.role == "assistant" else ""

    @property
    def question(self) -> str:
        """Text of the last turn that is the user's."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")

    def as_prompt(self) -> Conversation:
        """The conversation without its last assistant turn."""
        asks = self.messages[-1].role == "assistant"
        return replace(self, messages=self.messages[:-1]) if asks else self


def document(parts: Sequence[Part], **fields: Any) -> Conversation:
    """Raw text and media as one sample, without chat markers."""
    return Conversation(messages=(Message(role="document", parts=tuple(parts)),), **fields)
