"""What a layout is, and what layouts of conversations share: roles, tools, flags of turns."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from vlmkit.data.record import Conversation, Message, Role, ToolCall
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Node, Row
from vlmkit.errors import listed

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "document": "document",
}
"""Names of roles as datasets write them."""

CALLS = ("function_call", "tool_call")
"""Roles whose text is a call of a tool."""


class Layout(Protocol):
    """What a row means; knows nothing of how rows are stored. A function will do."""

    def __call__(self, row: Row, media: Media) -> Conversation:
        """Read a row.

        Raises:
            DataError: it is not what the layout says; names place, problem and remedy.
        """
        ...


def role_of(node: Node, known: Iterable[str] = ROLES) -> Role:
    """The role that a name stands for."""
    name = node.text()
    if name not in known:
        raise node.error(f"{name[:40]!r} is no known role", f"roles are {listed(known, most=20)}")
    return ROLES[name]


def tools_of(node: Node) -> tuple[dict[str, Any], ...]:
    """Signatures of tools: a list of objects; list or objects may be JSON in a text."""
    if not node.is_there or node.value == "":
        return ()
    return tuple(writable(item.parsed()) for item in node.parsed().items())


def calls_of(node: Node) -> tuple[ToolCall, ...]:
    """Calls as the OpenAI API has them, or without their `function` shell."""
    calls: list[ToolCall] = []
    for item in node.parsed().items() if node.is_there else ():
        item.only("id", "type", "index", "function", "name", "arguments")
        calls.append(call_of(item["function"] if item["function"].is_there else item))
    return tuple(calls)


def call_of(node: Node) -> ToolCall:
    """One call: a name, and arguments as an object or as the JSON of one, which is kept as it is."""
    name, arguments = node["name"].text(), node["arguments"]
    if not name:
        raise node["name"].error("it is empty", "name the function")
    if not arguments.is_there or arguments.value == "":
        return ToolCall(name, {})
    parsed = writable(arguments.parsed())
    return ToolCall(name, arguments.text() if isinstance(arguments.value, str) else parsed)


def calls_in_text(node: Node) -> tuple[ToolCall, ...]:
    """A turn that is nothing but the JSON of one call or of a list of them."""
    parsed = node.parsed()
    return tuple(map(call_of, parsed.items() if isinstance(parsed.value, list) else [parsed]))


def writable(node: Node) -> dict[str, Any]:
    """An object that can be written as JSON, as templates will."""
    found = dict(node.mapping())
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise node.error(f"it cannot be written as JSON ({error})", "use plain values") from error
    return found


def scored_of(turn: Node) -> bool | None:
    """Whether a turn is said to be scored: `weight` (0 or 1), `scored` or `train`."""
    flag = turn.first_of("scored", "train", "weight")
    if not flag.is_there:
        return None
    if flag.value not in (0, 1):
        raise flag.error(
            f"it is {str(flag.value)[:40]}", "a turn is scored (1, true) or not (0, false)"
        )
    return bool(flag.value)


def checked(
    messages: list[Message], row: Row, column: Node, tools: Node, used: Collection[str | None]
) -> Conversation:
    """The conversation of these messages."""
    if not messages:
        raise column.error("it is empty", "a conversation has at least one turn")
    return Conversation(
        messages=tuple(messages),
        key=row.key,
        tools=tools_of(tools),
        origin=row.origin,
        meta=row.rest(*used),
    )
