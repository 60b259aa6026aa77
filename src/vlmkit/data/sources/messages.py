"""Messages as the OpenAI API, `transformers` and Qwen's own tools write them."""

from __future__ import annotations

from vlmkit.data.record import Conversation, Message, Part
from vlmkit.data.sources.content import Content
from vlmkit.data.sources.layout import call_of, calls_of, checked, role_of, scored_of
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.placeholders import MediaColumns
from vlmkit.data.sources.row import Node, Row

_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "document")
_KNOWN = (
    *("role", "content", "tool_calls", "function_call", "weight", "scored", "train"),
    *("reasoning_content", "reasoning", "thinking"),
)
_IMMATERIAL = ("id", "name", "tool_call_id", "refusal", "annotations")


class Messages:
    """`{"messages": [{"role": "user", "content": "..." or [parts]}, ...], "tools": [...]}`.

    Parts are `text`, `image`, `image_url`, `video` and `video_url`, also without a `type`, as in
    `{"image": "cat.jpg"}`. A video takes `video_start` and `video_end` in seconds; a list of frames
    needs `fps` (or `sample_fps`) or `times`. A part `{"type": "image"}` without anything more is the
    next of the `images` column, and so is `<image>` in content that is text, in rows with such a column.

    vlmkit's own: boxes and points in a space that is named, on picture `image` of the conversation:
    `{"type": "boxes", "image": 0, "space": "pixels", "objects": [{"bbox_2d": [...], "label": "cup"}]}`.
    Spaces are `pixels` of the file, as shown, `relative_1000` and `relative_1`. And the role `document`,
    for text and media without turns.

    An assistant's turn has `reasoning_content` (or `thinking`), `tool_calls`, and `weight` (0 or 1),
    `train` or `scored`. What is not known is refused, for a mistyped key would change what is learned.

    Args:
        messages: column with the turns.
        tools: column with the signatures of tools; None: there is none.
        images: column with pictures; None: it is not looked at.
        videos: column with videos; None: it is not looked at.
        image_token: what stands for a picture of that column in content that is text.
        video_token: the same for a video.
        trim: drop one newline on either side of a placeholder.
        ignored: keys of turns and parts that may be passed over.
    """

    def __init__(
        self,
        messages: str = "messages",
        tools: str | None = "tools",
        images: str | None = "images",
        videos: str | None = "videos",
        image_token: str = "<image>",
        video_token: str = "<video>",
        trim: bool = True,
        ignored: tuple[str, ...] | list[str] = (),
    ) -> None:
        self.messages, self.tools = messages, tools
        self.images, self.videos = images, videos
        self.tokens = (image_token, video_token)
        self.trim, self.ignored = trim, tuple(ignored)

    def __call__(self, row: Row, media: Media) -> Conversation:
        """See `Layout`."""
        images, videos = ([name] if name else [] for name in (self.images, self.videos))
        held = MediaColumns(row, media, images, videos, self.tokens)
        content = Content(media, held, self.trim, self.ignored)
        column = row[self.messages]
        messages = [self._message(turn, content) for turn in column.items()]
        held.finish(row)
        messages = content.with_boxes(messages)
        if len(messages) > 1 and any(message.role == "document" for message in messages):
            raise column.error("a document stands among other turns", "give it a row of its own")
        tools = row[self.tools] if self.tools else Node(None)
        used = (self.messages, self.tools, self.images, self.videos)
        return checked(messages, row, column, tools, used)

    def _message(self, turn: Node, content: Content) -> Message:
        turn.only(*_KNOWN, ignored=(*_IMMATERIAL, *self.ignored))
        role = role_of(turn["role"], _ROLES)
        thinking = turn.first_of("reasoning_content", "reasoning", "thinking")
        calls = calls_of(turn["tool_calls"])
        if turn["function_call"].is_there:
            calls += (call_of(turn["function_call"]),)
        for node, there in ((thinking, thinking.is_there), (turn["tool_calls"], bool(calls))):
            if there and role != "assistant":
                raise node.error(f"this is a turn of the {role}", "only the assistant has such")
        said = turn["content"]
        parts: tuple[Part, ...] = ()
        if said.is_there or not calls:
            parts = content.parts(said)
        return Message(
            role=role,
            parts=parts,
            scored=scored_of(turn),
            thinking=thinking.text() if thinking.is_there else None,
            tool_calls=calls,
        )
