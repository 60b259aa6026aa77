"""Pictures with captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vlmkit.data.record import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    document,
)
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Node, Row

QUESTIONS = (
    "Describe this image.",
    "What does this image show?",
    "Write a caption for this image.",
    "What can be seen in this picture?",
)


class Captions:
    """A picture and its caption, as a question with an answer or as a document.

    Where a row has several captions, one is taken. Which one, and which question is asked, is decided
    by the row's number alone.

    Args:
        image: column with the picture.
        caption: column with the caption, or a list of them.
        questions: ways to ask; one is taken.
        as_document: picture and caption without turns, as in pre-training.
    """

    def __init__(
        self,
        image: str = "image",
        caption: str = "caption",
        questions: Sequence[str] = QUESTIONS,
        as_document: bool = False,
    ) -> None:
        if not questions and not as_document:
            raise ValueError("questions is empty: give at least one, or set as_document: true")
        self.image, self.caption = image, caption
        self.questions, self.as_document = tuple(questions), as_document

    def __call__(self, row: Row, media: Media) -> Conversation:
        """See `Layout`."""
        picture = ImagePart(media.image(row[self.image]))
        caption = self._caption(row)
        meta = row.rest(self.image, self.caption)
        if self.as_document:
            return document([picture, TextPart(caption)], key=row.key, origin=row.origin, meta=meta)
        question = self.questions[_draw(row.key, "question", len(self.questions))]
        asked: tuple[Part, ...] = (picture, TextPart(question))
        return Conversation(
            messages=(
                Message(role="user", parts=asked),
                Message(role="assistant", parts=(TextPart(caption),)),
            ),
            key=row.key,
            origin=row.origin,
            meta=meta,
        )

    def _caption(self, row: Row) -> str:
        node: Node = row[self.caption]
        if isinstance(node.value, list | tuple) and node.value:
            several = node.items()
            node = several[_draw(row.key, "caption", len(several))]
        text = node.text()
        if not text.strip():
            raise node.error("it is empty", "write a caption")
        return text


def _draw(key: int, what: str, count: int) -> int:
    """A number below `count` that looks random and depends on the key only."""
    drawn = hashlib.blake2b(f"{what} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "little") % count
