"""LLaVA's instruction data, and what other projects made of it."""

from __future__ import annotations

from vlmkit.data.record import Conversation, Message, Part
from vlmkit.data.sources.layout import checked, role_of, scored_of
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.placeholders import MediaColumns
from vlmkit.data.sources.row import Node, Row

_ROLES = ("human", "user", "gpt", "assistant", "system")


class Llava:
    r"""`{"image": ..., "conversations": [{"from": "human", "value": "<image>\nWhat is this?"}, ...]}`.

    Each `<image>` and `<video>` is replaced by the next picture or video of the row, and there must be
    as many. Two habits of such data are known: where no turn has a placeholder, pictures and videos go
    in front of the first human turn; and `<image>` stands for a video in rows that have only videos.

    Args:
        conversations: column with the turns.
        image: column with a picture, or a list of them.
        images: the same under another name; a row fills one of the two.
        video: column with a video, or a list of them.
        videos: the same under another name.
        image_token: what stands for a picture.
        video_token: what stands for a video.
        trim: drop one newline on either side of a placeholder.
        ignored: keys of turns that may be passed over.
    """

    def __init__(
        self,
        conversations: str = "conversations",
        image: str = "image",
        images: str = "images",
        video: str = "video",
        videos: str = "videos",
        image_token: str = "<image>",
        video_token: str = "<video>",
        trim: bool = True,
        ignored: tuple[str, ...] | list[str] = (),
    ) -> None:
        self.conversations = conversations
        self.image, self.video = (image, images), (video, videos)
        self.tokens = (image_token, video_token)
        self.trim, self.ignored = trim, tuple(ignored)

    def __call__(self, row: Row, media: Media) -> Conversation:
        """See `Layout`."""
        column = row[self.conversations]
        turns = column.items()
        for turn in turns:
            turn.only("from", "value", "weight", "scored", "train", ignored=self.ignored)
        roles = [role_of(turn["from"], _ROLES) for turn in turns]
        texts = [turn["value"] for turn in turns]
        held = MediaColumns(row, media, self.image, self.video, self.tokens)
        parts = self._parts(row, texts, held, roles.index("user") if "user" in roles else None)
        messages = [
            Message(role=role, parts=content, scored=scored_of(turn))
            for role, content, turn in zip(roles, parts, turns, strict=True)
        ]
        used = (self.conversations, *self.image, *self.video)
        return checked(messages, row, column, Node(None), used)

    def _parts(
        self, row: Row, texts: list[Node], held: MediaColumns, first_human: int | None
    ) -> list[tuple[Part, ...]]:
        places = held.places(text.text() for text in texts)
        if held.any and not any(places.values()) and first_human is not None:
            parts = [held.split(text, self.trim) for text in texts]
            parts[first_human] = (*held.rest(), *parts[first_human])
            return parts
        only_videos = held.counts["video"] and not held.counts["image"] and not places["video"]
        if only_videos and places["image"] == held.counts["video"]:
            held.tokens = dict.fromkeys(held.tokens, "video")
            places = {"image": 0, "video": held.counts["video"]}
        for token, kind in held.tokens.items():
            if places[kind] != held.counts[kind]:
                raise row.error(
                    f"its text has {places[kind]} {token}, and the row has {held.counts[kind]} {kind}(s)",
                    f"write {token} once for each, where it belongs",
                )
        return [held.split(text, self.trim) for text in texts]
