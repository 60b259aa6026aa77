"""Chat templates: conversation -> text and media in order, and which text is scored.

What is scored follows from the turns as they are written, never from a search for marker tokens: the
assistant's own text, the thinking and tool calls it writes, and the `<|im_end|>` with which it ends.
Headers, the newline after a turn and labels of media never are; turns of others are where their
`Message.scored` says so. Jinja files beside the assets write the same text for other engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vlmkit.data.record import Conversation
from vlmkit.data.turns import (
    Piece,
    TextPiece,
    as_response,
    check,
    contents,
    document,
    index_of_last_question,
    is_document,
    other_turn,
    split_thinking,
    strip_leading_newlines,
    system_turn,
    tool_calls,
    turn,
)

__all__ = ["ChatTemplate", "InstructTemplate", "Piece", "TextPiece", "ThinkingTemplate"]

ASSISTANT = "<|im_start|>assistant\n"
THINKING = ASSISTANT + "<think>\n"


class ChatTemplate(Protocol):
    """How turns are written."""

    def render(self, conversation: Conversation, for_generation: bool = False) -> list[Piece]:
        """Write a conversation.

        Args:
            conversation: the sample.
            for_generation: end with the opening of an assistant turn; leave a document open.

        Returns:
            Text and media in order; the markers around media belong to the media.

        Raises:
            RecordError: nothing can be written for such a conversation; names the message.
        """
        ...


@dataclass(frozen=True)
class InstructTemplate:
    """Qwen3-VL Instruct: no default system prompt; assistant turns are written as they are.

    `Message.thinking` is written nowhere, while a think block inside the text stays. A system message
    that is not the first message is left out, as in the released template.

    Args:
        add_vision_id: write `Picture 1: ` and `Video 1: ` before media, counted over the conversation.
    """

    add_vision_id: bool = False

    def render(self, conversation: Conversation, for_generation: bool = False) -> list[Piece]:
        """See `ChatTemplate.render`."""
        check(conversation)
        if is_document(conversation):
            return document(conversation, for_generation)
        pieces = system_turn(conversation)
        for i, message, content in contents(conversation, self.add_vision_id):
            if message.role == "assistant":
                body = [*content, *tool_calls(message, content)]
                pieces += as_response(i, turn(ASSISTANT, body, message.is_scored))
            elif message.role != "system":
                pieces += as_response(i, other_turn(conversation, i, content))
        return [*pieces, TextPiece(ASSISTANT)] if for_generation else pieces


@dataclass(frozen=True)
class ThinkingTemplate:
    r"""Qwen3-VL Thinking: `<think>`, reasoning, `</think>`, a blank line, the answer.

    Reasoning is `Message.thinking`; where that is None, what stands before `</think>` in the text.
    It is written after the user's last question only, and left out of earlier turns: a conversation
    that is to teach the reasoning of each of its answers becomes one sample per answer. Results of
    tools are no question. A last turn of the assistant gets its think block even where it is empty.

    The `<think>\n` that opens a block is part of the prompt for generation, so it is not scored; the
    reasoning, `</think>` and all that follows are.

    Args:
        add_vision_id: write `Picture 1: ` and `Video 1: ` before media, counted over the conversation.
    """

    add_vision_id: bool = False

    def render(self, conversation: Conversation, for_generation: bool = False) -> list[Piece]:
        """See `ChatTemplate.render`."""
        check(conversation)
        if is_document(conversation):
            return document(conversation, for_generation)
        pieces = system_turn(conversation)
        last = len(conversation.messages) - 1
        last_question = index_of_last_question(conversation)
        for i, message, content in contents(conversation, self.add_vision_id):
            if message.role != "assistant":
                pieces += as_response(i, other_turn(conversation, i, content))
                continue
            thinking, content = split_thinking(conversation, i, content)
            calls = tool_calls(message, content)
            if i > last_question and (thinking or i == last):
                thought = thinking.strip("\n") + "\n</think>\n\n"
                answer = [*strip_leading_newlines(content), *calls]
                body = [TextPiece(thought, message.is_scored), *answer]
                written = turn(THINKING, body, message.is_scored)
            else:
                written = turn(ASSISTANT, [*content, *calls], message.is_scored)
            pieces += as_response(i, written)
        return [*pieces, TextPiece(THINKING)] if for_generation else pieces
