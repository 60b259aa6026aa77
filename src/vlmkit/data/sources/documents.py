"""Raw text, and text with pictures in between, as in pre-training corpora."""

from __future__ import annotations

from collections import defaultdict

from vlmkit.data.record import Conversation, ImagePart, Part, TextPart, document
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Node, Row


class Documents:
    """A column of text; or lists of texts and of pictures that take turns, as in OBELICS.

    In such lists each place holds a text or a picture, and null in the other list.

    Args:
        text: column with the text.
        texts: column with the list of texts; rows that have it are read this way.
        images: column with the list of pictures.
        separator: what is written between texts that follow one another.
    """

    def __init__(
        self,
        text: str = "text",
        texts: str = "texts",
        images: str = "images",
        separator: str = "\n\n",
    ) -> None:
        self.text, self.texts, self.images, self.separator = text, texts, images, separator

    def __call__(self, row: Row, media: Media) -> Conversation:
        """See `Layout`."""
        several = row.first_of(self.text, self.texts)
        if row[self.texts].is_there:
            parts = self._in_turns(row, media)
            used: tuple[str, ...] = (self.texts, self.images)
        else:
            parts, used = [TextPart(several.text())], (self.text,)
        return _document(parts, row, used)

    def _in_turns(self, row: Row, media: Media) -> list[Part]:
        texts = row[self.texts].items()
        images = row[self.images].items() if row[self.images].is_there else []
        if images and len(images) != len(texts):
            raise row.error(
                f"{self.texts} has {len(texts)} places and {self.images} has {len(images)}",
                "give both the same number, null in one where the other has something",
            )
        parts: list[Part] = []
        for i, text in enumerate(texts):
            image = images[i] if images else Node(None)
            if text.is_there == image.is_there:
                both = "both a text and a picture" if text.is_there else "neither text nor picture"
                raise text.error(
                    f"this place has {both}", "give one of them, and null in the other"
                )
            if image.is_there:
                parts.append(ImagePart(media.image(image)))
            else:
                _append(parts, text.text(), self.separator)
        return parts


class MatchedDocuments:
    """Sentences, and pictures that each belong to one of them, as in MMC4.

    A picture stands in front of its sentence.

    Args:
        sentences: column with the list of sentences.
        pictures: column with the list of pictures, each an object.
        image: what names a picture in its object.
        sentence: number of its sentence in its object, counted from 0.
        separator: what is written between sentences.
    """

    def __init__(
        self,
        sentences: str = "text_list",
        pictures: str = "image_info",
        image: str = "image_name",
        sentence: str = "matched_text_index",
        separator: str = " ",
    ) -> None:
        self.sentences, self.pictures = sentences, pictures
        self.image, self.sentence, self.separator = image, sentence, separator

    def __call__(self, row: Row, media: Media) -> Conversation:
        """See `Layout`."""
        sentences = row[self.sentences].items()
        in_front: dict[int, list[Part]] = defaultdict(list)
        for picture in row[self.pictures].items() if row[self.pictures].is_there else []:
            number = picture[self.sentence].count()
            if number >= len(sentences):
                raise picture[self.sentence].error(
                    f"it is {number}, and there are {len(sentences)} sentences", "count them from 0"
                )
            in_front[number].append(ImagePart(media.image(picture[self.image])))
        parts: list[Part] = []
        for number, sentence in enumerate(sentences):
            parts += in_front[number]
            _append(parts, sentence.text(), self.separator)
        return _document(parts, row, (self.sentences, self.pictures))


def _append(parts: list[Part], text: str, separator: str) -> None:
    """Add a text, set apart from a text before it."""
    if parts and isinstance(parts[-1], TextPart):
        parts[-1] = TextPart(parts[-1].text + separator + text)
    else:
        parts.append(TextPart(text))


def _document(parts: list[Part], row: Row, used: tuple[str, ...]) -> Conversation:
    if not any(part.text.strip() if isinstance(part, TextPart) else True for part in parts):
        raise row.error("the document is empty", "leave it out")
    return document(parts, key=row.key, origin=row.origin, meta=row.rest(*used))
