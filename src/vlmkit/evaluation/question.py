"""What a benchmark asks, and what counts as the right answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from vlmkit.data.media import ImageArray
from vlmkit.data.order.mixture import Source
from vlmkit.data.record import Conversation, ImagePart
from vlmkit.data.sizes.settings_key import plain, without
from vlmkit.data.sources.table import Table


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item of a benchmark.

    Attributes:
        key: names it within the benchmark, the same in every process and version.
        conversation: ends with the turn that is to be answered.
        target: what the metrics compare the answer with.
        group: items that are no independent evidence, such as several about one picture, have the same one.
        categories: by which scores are also broken down: `{"subject": "Art"}`.
    """

    key: str
    conversation: Conversation
    target: Any
    group: str | None = None
    categories: Mapping[str, str] = field(default_factory=dict)


class Questions(Protocol):
    """Random access to the items of a benchmark."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data behind the items; other data have another one."""
        ...

    @property
    def settings(self) -> Any:
        """How the data become questions, as plain values."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Question:
        """Item `index`, the same whoever asks and whenever.

        Raises:
            DataError: the item cannot be read; names it.
        """
        ...


class Ask(Protocol):
    """How a row of a dataset becomes a question: the prompt of a benchmark."""

    def __call__(self, row: Mapping[str, Any], index: int, origin: str) -> Question:
        """Write the question.

        Args:
            row: of the table.
            index: of the row.
            origin: where it stands, for messages.

        Raises:
            RecordError: the row is not what it should be; names `origin` and the column.
        """
        ...


class TableQuestions:
    """Rows of files, asked one way."""

    def __init__(self, table: Table, ask: Ask) -> None:
        """Keep the parts.

        Args:
            table: rows on disk.
            ask: row -> question.
        """
        self.table, self.ask = table, ask

    @property
    def fingerprint(self) -> str:
        """Of the files."""
        return self.table.fingerprint

    @property
    def settings(self) -> Any:
        """Of what asks; the folder of the media does not count."""
        return without(plain(self.ask), "media")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Question:
        """See `Questions`."""
        return self.ask(self.table[index], index, self.table.origin(index))


class SourceQuestions:
    """Held-out samples of a training source: the last turn is the answer that is looked for.

    Args:
        source: of conversations that end with the assistant's turn.
        key: what a sample's key begins with.
    """

    settings = "the prompt of training"

    def __init__(self, source: Source, key: str = "") -> None:
        self.source, self.key = source, key

    @cached_property
    def fingerprint(self) -> str:
        """Of all turns, and of pictures that are made up; files count by their names."""
        found = hashlib.sha256()
        for i in range(len(self.source)):
            for message in self.source[i].messages:
                found.update(f"{message.role}\0{message.text}\0".encode())
                for part in message.parts:
                    image = part.image if isinstance(part, ImagePart) else None
                    if isinstance(image, ImageArray):
                        found.update(image.pixels.tobytes())
                    elif image is not None:
                        found.update(image.name.rpartition("/")[2].encode())
        return found.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Question:
        """See `Questions`."""
        sample = self.source[index]
        return Question(
            key=f"{self.key}{index}", conversation=sample.as_prompt(), target=sample.answer
        )
