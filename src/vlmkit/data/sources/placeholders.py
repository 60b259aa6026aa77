"""Pictures and videos of a row, and the places in its text where they belong."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Literal

from vlmkit.data.record import ImagePart, Part, TextPart, VideoPart
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Node, Row

Kind = Literal["image", "video"]


class MediaColumns:
    """Columns with the pictures and videos of a row, handed out in order.

    Args:
        row: the row.
        media: opens what they name.
        image: columns with a picture or a list of them; at most one of them is filled.
        video: the same for videos.
        tokens: what stands for a picture and for a video in text.
    """

    def __init__(
        self,
        row: Row,
        media: Media,
        image: Iterable[str],
        video: Iterable[str],
        tokens: tuple[str, str],
    ) -> None:
        self._media = media
        self._left: dict[Kind, deque[Node]] = {
            "image": deque(_filled(row, tuple(image))),
            "video": deque(_filled(row, tuple(video))),
        }
        self.counts: dict[Kind, int] = {kind: len(nodes) for kind, nodes in self._left.items()}
        self.tokens: dict[str, Kind] = {tokens[0]: "image", tokens[1]: "video"}
        self._pattern = re.compile("|".join(f"({re.escape(token)})" for token in tokens))

    @property
    def any(self) -> bool:
        """Whether the row has pictures or videos in columns of their own."""
        return any(self.counts.values())

    def next(self, kind: Kind, at: Node) -> Part:
        """The next picture or video, which belongs at a place of the row."""
        if not self._left[kind]:
            raise at.error(
                f"this is place {self.counts[kind] + 1} for {_a(kind)}, and the row has {self.counts[kind]}",
                "give one for each place",
            )
        return self._part(kind, self._left[kind].popleft())

    def rest(self) -> list[Part]:
        """All that were not handed out, pictures first."""
        return [self._part(kind, node) for kind, nodes in self._left.items() for node in nodes]

    def finish(self, row: Row) -> None:
        """Refuse what has no place.

        Raises:
            RecordError: names how many there are and how many places.
        """
        for token, kind in self.tokens.items():
            if left := len(self._left[kind]):
                count = self.counts[kind]
                raise row.error(
                    f"{count} {kind}(s) in columns of their own have {count - left} place(s) in the text",
                    f"write {token} once for each, where it belongs",
                )

    def places(self, texts: Iterable[str]) -> dict[Kind, int]:
        """How many placeholders texts hold."""
        held = list(texts)
        return {
            kind: sum(text.count(token) for text in held) for token, kind in self.tokens.items()
        }

    def split(self, node: Node, trim: bool = True) -> tuple[Part, ...]:
        """Text with pictures and videos in the places of their placeholders.

        Args:
            node: the text.
            trim: drop one newline on either side of a placeholder, which is how such data sets it apart.
        """
        text = node.text()
        parts: list[Part] = []
        at = 0
        for found in self._pattern.finditer(text):
            parts += _text(text[at : found.start()], after=at > 0 and trim, before=trim)
            parts.append(self.next(self.tokens[found[0]], node))
            at = found.end()
        return (*parts, *_text(text[at:], after=at > 0 and trim, before=False))

    def _part(self, kind: Kind, node: Node) -> Part:
        if kind == "image":
            return ImagePart(self._media.image(node))
        return VideoPart(self._media.video(node))


def _text(text: str, after: bool, before: bool) -> list[Part]:
    """What stands after and before placeholders."""
    if after:
        text = text.removeprefix("\r\n") if text.startswith("\r\n") else text.removeprefix("\n")
    if before:
        text = text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
    return [TextPart(text)] if text else []


def _filled(row: Row, columns: tuple[str, ...]) -> list[Node]:
    if not columns:
        return []
    node = row.first_of(*columns)
    if isinstance(node.value, list | tuple):
        return node.items()
    return [node] if node.is_there else []


def _a(kind: Kind) -> str:
    return "an image" if kind == "image" else "a video"
