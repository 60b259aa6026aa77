"""Chat templates: conversation -> text and media in order, and which text is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vlmkit.data.record import Conversation, ImagePart, TextPart, VideoPart


@dataclass(frozen=True)
class TextPiece:
    """Rendered text; the loss counts it or not."""

    text: str
    scored: bool = False


Piece = TextPiece | ImagePart | VideoPart


class ChatTemplate(Protocol):
    """How turns are written."""

    def render(self, conversation: Conversation, for_generation: bool = False) -> list[Piece]:
        """Write a conversation.

        Args:
            conversation: the sample.
            for_generation: end with the opening of an assistant turn.

        Returns:
            Text and media in order; the markers around media belong to the media.
        """
        ...


class InstructTemplate:
    """Qwen3-VL Instruct: no default system prompt; assistant text and its end marker are scored.

    Args:
        add_vision_id: write `Picture 1: ` and `Video 1: ` before media, counted over the conversation.
    """

    def __init__(self, add_vision_id: bool = False) -> None:
        self.add_vision_id = add_vision_id

    def render(self, conversation: Conversation, for_generation: bool = False) -> list[Piece]:
        """See `ChatTemplate.render`."""
        pieces: list[Piece] = []
        num_images = num_videos = 0
        for message in conversation.messages:
            pieces.append(TextPiece(f"<|im_start|>{message.role}\n"))
            for part in message.parts:
                if isinstance(part, TextPart):
                    pieces.append(TextPiece(part.text, message.is_scored))
                    continue
                if isinstance(part, ImagePart):
                    num_images += 1
                    label = f"Picture {num_images}: "
                else:
                    num_videos += 1
                    label = f"Video {num_videos}: "
                if self.add_vision_id:
                    pieces.append(TextPiece(label))
                pieces.append(part)
            pieces += [TextPiece("<|im_end|>", message.is_scored), TextPiece("\n")]
        if for_generation:
            pieces.append(TextPiece("<|im_start|>assistant\n"))
        return pieces
