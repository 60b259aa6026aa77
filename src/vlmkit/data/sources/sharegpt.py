"""ShareGPT's conversations, with the tools, pictures and videos that LLaMA-Factory added to them."""

from __future__ import annotations

from vlmkit.data.record import Conversation, Message, TextPart
from vlmkit.data.sources.layout import (
    CALLS,
    ROLES,
    calls_in_text,
    checked,
    role_of,
    scored_of,
)
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.placeholders import MediaColumns
from vlmkit.data.sources.row import Node, Row

_ROLES = tuple(name for name in ROLES if name != "document")


class ShareGPT:
    """`{"conversations": [{"from": "human", "value": "..."}, ...]}`, or `role` and `content`.

    Turns of `function_call` hold the JSON of one call or of a list of them, turns of `observation` the
    result. A row may have a `system` text and `tools` (a list, or the JSON of one). Placeholders are
    replaced in rows that have pictures or videos; elsewhere they are text.

    Args:
        conversations: column with the turns.
        system: column with a system text, which goes in front; None: there is none.
        tools: column with the signatures of tools; None: there is none.
        images: column with pictures.
        videos: column with videos.
        image_token: what stands for a picture.
        video_token: what stands for a video.
        trim: drop one newline on either side of a placeholder.
        ignored: keys of turns that may be passed over.
    """

    def __init__(
        self,
        conversations: str = "conversations",
        system: str | None = "system",
        tools: str | None = "tools",
        images: str = "images",
        videos: str = "videos",
        image_token: str = "<image>",
        video_token: str = "<video>",
        trim: bool = True,
        ignored: tuple[str, ...] | list[str] = (),
    ) -> None:
        self.conversations, self.system, self.tools = conversations, system, tools
        self.images, self.videos = images, videos
        self.tokens = (image_token, video_token)
        self.trim, self.ignored = trim, tuple(ignored)

    def __call__(self, row: Row, media: Media) -> Conversation:
        """See `Layout`."""
        held = MediaColumns(row, media, (self.images,), (self.videos,), self.tokens)
        column = row[self.conversations]
        messages = [self._message(turn, held) for turn in column.items()]
        held.finish(row)
        system = row[self.system] if self.system else Node(None)
        if messages and system.is_there and system.text():
            if messages[0].role == "system":
                raise system.error("the first turn is a system turn, too", "keep one of them")
            messages.insert(0, Message(role="system", parts=(TextPart(system.text()),)))
        tools = row[self.tools] if self.tools else Node(None)
        used = (self.conversations, self.system, self.tools, self.images, self.videos)
        return checked(messages, row, column, tools, used)

    def _message(self, turn: Node, held: MediaColumns) -> Message:
        turn.only(
            *("from", "role", "value", "content", "weight", "scored", "train"), ignored=self.ignored
        )
        name, text = turn.first_of("from", "role"), turn.first_of("value", "content")
        role, scored = role_of(name, _ROLES), scored_of(turn)
        if name.value in CALLS:
            return Message(role=role, tool_calls=calls_in_text(text), scored=scored)
        if held.any:
            return Message(role=role, parts=held.split(text, self.trim), scored=scored)
        content = text.text()
        return Message(role=role, parts=(TextPart(content),) if content else (), scored=scored)
