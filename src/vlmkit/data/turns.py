"""What chat templates share: the written parts of a turn, tools with their calls and results, documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from vlmkit.data.record import Conversation, ImagePart, Message, VideoPart
from vlmkit.errors import RecordError

END_OF_THINKING = "</think>"

TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


@dataclass(frozen=True)
class TextPiece:
    """Rendered text; the loss counts it or not.

    `response` is the index of the message that scored text belongs to.
    """

    text: str
    scored: bool = False
    response: int = 0


Piece = TextPiece | ImagePart | VideoPart


def check(conversation: Conversation) -> None:
    """Refuse what no template can write.

    Raises:
        RecordError: names the message.
    """
    messages = conversation.messages
    if not messages:
        raise _error(conversation, "it has no messages")
    for i, message in enumerate(messages):
        has_media = any(isinstance(part, ImagePart | VideoPart) for part in message.parts)
        if message.role == "document" and (len(messages) > 1 or conversation.tools):
            problem = "a document is written without other messages and without tools"
        elif message.role != "assistant" and message.tool_calls:
            problem = "only the assistant calls tools"
        elif message.role != "assistant" and message.thinking is not None:
            problem = "only the assistant thinks"
        elif message.tool_calls and has_media:
            problem = "a turn that calls tools cannot hold pictures or videos"
        elif message.role == "system" and has_media:
            problem = "system messages cannot hold pictures or videos"
        else:
            continue
        raise _error(conversation, f"message {i} ({message.role}): {problem}")


def is_document(conversation: Conversation) -> bool:
    """Whether a checked conversation is raw text and media, without turns."""
    return conversation.messages[0].role == "document"


def document(conversation: Conversation, for_generation: bool) -> list[Piece]:
    """The parts as they are, then the end of the text unless it is to be continued."""
    (message,) = conversation.messages
    end = [] if for_generation else [TextPiece("<|endoftext|>", message.is_scored)]
    return [*_written(message, None), *end]


def contents(
    conversation: Conversation, add_vision_id: bool
) -> Iterator[tuple[int, Message, list[Piece]]]:
    """Index, message and written parts of all messages but an opening system message."""
    counts = {"Picture": 0, "Video": 0} if add_vision_id else None
    for i, message in enumerate(conversation.messages):
        if i or message.role != "system":
            yield i, message, _written(message, counts)


def as_response(index: int, pieces: list[Piece]) -> list[Piece]:
    """The written message of this index, its scored text marked as one response."""
    return [
        replace(piece, response=index) if isinstance(piece, TextPiece) and piece.scored else piece
        for piece in pieces
    ]


def turn(header: str, body: list[Piece], scored: bool) -> list[Piece]:
    """A header, what stands below it, and the end of the turn, which is scored or not."""
    return [TextPiece(header), *body, TextPiece("<|im_end|>", scored), TextPiece("\n")]


def system_turn(conversation: Conversation) -> list[Piece]:
    """The opening system message and the signatures of the tools; nothing where there are neither."""
    first = conversation.messages[0]
    is_system = first.role == "system"
    body = _written(first, None) if is_system else []
    if conversation.tools:
        signatures = "\n".join(_to_json(tool) for tool in conversation.tools)
        gap = "\n\n" if is_system else ""
        body.append(TextPiece(gap + TOOLS_BEFORE + signatures + TOOLS_AFTER))
    elif not is_system:
        return []
    return turn("<|im_start|>system\n", body, is_system and first.is_scored)


def other_turn(conversation: Conversation, index: int, content: list[Piece]) -> list[Piece]:
    """A turn that is not the assistant's. Results of tools in a row are one turn of the user."""
    message = conversation.messages[index]
    if message.role != "tool":
        return turn(f"<|im_start|>{message.role}\n", content, message.is_scored)
    before = conversation.messages[max(index - 1, 0) : index]
    after = conversation.messages[index + 1 : index + 2]
    is_first, is_last = (not any(near.role == "tool" for near in side) for side in (before, after))
    opening = "<|im_start|>user" if is_first else ""
    body = [*content, TextPiece("\n</tool_response>")]
    pieces = turn(f"{opening}\n<tool_response>\n", body, message.is_scored)
    return pieces if is_last else pieces[:-2]


def tool_calls(message: Message, content: list[Piece]) -> list[Piece]:
    """The calls of an assistant turn, set apart from one another and from content before them."""
    pieces: list[Piece] = []
    has_content = any(not isinstance(piece, TextPiece) or piece.text for piece in content)
    for call in message.tool_calls:
        arguments = call.arguments
        written = arguments if isinstance(arguments, str) else _to_json(arguments)
        gap = "\n" if has_content or pieces else ""
        text = f'{gap}<tool_call>\n{{"name": "{call.name}", "arguments": {written}}}\n</tool_call>'
        pieces.append(TextPiece(text, message.is_scored))
    return pieces


def index_of_last_question(conversation: Conversation) -> int:
    """The last user message that is not a result of a tool; without one, the last message."""
    for i in reversed(range(len(conversation.messages))):
        message = conversation.messages[i]
        if message.role != "user":
            continue
        text = "".join(
            piece.text if isinstance(piece, TextPiece) else "<media>"
            for piece in _written(message, None)
        )
        if not (text.startswith("<tool_response>") and text.endswith("</tool_response>")):
            return i
    return len(conversation.messages) - 1


def split_thinking(
    conversation: Conversation, index: int, content: list[Piece]
) -> tuple[str, list[Piece]]:
    """Reasoning and answer of an assistant turn, by its `thinking` or by `</think>` in its text.

    Text between a first and a last `</think>` is neither, as in the released template.

    Raises:
        RecordError: a picture or video stands before `</think>`, and would vanish with the reasoning.
    """
    message = conversation.messages[index]
    if message.thinking is not None:
        return message.thinking, content
    merged = _merged(content)
    holds_end = [isinstance(p, TextPiece) and END_OF_THINKING in p.text for p in merged]
    if not any(holds_end):
        return "", content
    head, *rest = merged
    if any(holds_end[1:]):
        raise _error(
            conversation,
            f"message {index} (assistant): pictures or videos stand before {END_OF_THINKING}; "
            "reasoning holds text only",
        )
    assert isinstance(head, TextPiece)
    thinking = head.text.partition(END_OF_THINKING)[0].rstrip("\n").rpartition("<think>")[2]
    answer = TextPiece(head.text.rpartition(END_OF_THINKING)[2], head.scored)
    return thinking.lstrip("\n"), strip_leading_newlines([answer, *rest])


def strip_leading_newlines(content: list[Piece]) -> list[Piece]:
    """The content without the newlines that it begins with."""
    merged = _merged(content)
    if merged and isinstance(merged[0], TextPiece):
        merged[0] = TextPiece(merged[0].text.lstrip("\n"), merged[0].scored)
    return merged


def _written(message: Message, counts: dict[str, int] | None) -> list[Piece]:
    """The parts of a message, media behind their labels if they are counted."""
    pieces: list[Piece] = []
    for part in message.parts:
        if not isinstance(part, ImagePart | VideoPart):
            pieces.append(TextPiece(part.text, message.is_scored))
            continue
        if counts is not None:
            kind = "Picture" if isinstance(part, ImagePart) else "Video"
            counts[kind] += 1
            pieces.append(TextPiece(f"{kind} {counts[kind]}: "))
        pieces.append(part)
    return pieces


def _merged(content: list[Piece]) -> list[Piece]:
    """Neighbouring text of one turn as one piece, so that no marker is cut; labels stay apart."""
    merged: list[Piece] = []
    for key, run in groupby(content, key=lambda p: p.scored if isinstance(p, TextPiece) else None):
        if key is None:
            merged += run
        else:
            text = "".join(piece.text for piece in run if isinstance(piece, TextPiece))
            merged.append(TextPiece(text, key))
    return merged


def _to_json(value: Any) -> str:
    """As the `tojson` filter of transformers writes it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False)


def _error(conversation: Conversation, problem: str) -> RecordError:
    name = conversation.origin or conversation.source or "conversation"
    return RecordError(f"{name}: {problem}")
