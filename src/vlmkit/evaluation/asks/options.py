"""The options of multiple-choice questions, and which of them is right, as datasets write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlmkit.data.sources.row import Node, Row
from vlmkit.evaluation.asks.values import at, listed, needed, number_of, text_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\s*[(\[]?\s*([A-Z])\s*[)\].:]?\s*")
_LETTERED = re.compile(r"\s*[(\[]?([A-Z])[)\].:]\s*")


class Options(Protocol):
    """Finds the texts of the options."""

    def __call__(self, row: Row) -> list[str]:
        """In the order of the file; an empty text stands for one that is only in the question."""
        ...


class Right(Protocol):
    """Finds which option is right."""

    def __call__(self, row: Row, texts: Sequence[str]) -> int:
        """Its number, counted from 0.

        Raises:
            RecordError: the row does not say, or names none of the options.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LetterColumns:
    """Columns `A`, `B`, ... as far as they are filled."""

    letters: str = LETTERS

    def __call__(self, row: Row) -> list[str]:
        """See `Options`."""
        texts = [text_of(at(row, letter)) for letter in self.letters]
        return _before_gap(row, texts)


def _before_gap(row: Row, texts: Sequence[str | None]) -> list[str]:
    """The options that are there: the first ones, without a gap."""
    count = next((i for i, text in enumerate(texts) if text is None), len(texts))
    left = [LETTERS[i] for i in range(count, len(texts)) if texts[i] is not None]
    if left:
        raise row.error(f"there is an option {left[0]} and none before it", "mend the row")
    return [text for text in texts if text is not None]


@dataclass(frozen=True, kw_only=True)
class NamedColumns:
    """A column for each option, such as GPQA's `Correct Answer` and `Incorrect Answer 1`."""

    columns: Sequence[str]

    def __call__(self, row: Row) -> list[str]:
        """See `Options`."""
        return [needed(at(row, column)).strip() for column in self.columns]


@dataclass(frozen=True, kw_only=True)
class ListColumn:
    """A column with a list, or with a text that is one in Python or JSON; empty for open questions.

    Attributes:
        column: its name.
        lettered: texts begin with their letters, `"A. a cup"`, which are taken off.
    """

    column: str = "options"
    lettered: bool = False

    def __call__(self, row: Row) -> list[str]:
        """See `Options`."""
        return [self._plain(node, i) for i, node in enumerate(listed(at(row, self.column)))]

    def _plain(self, node: Node, number: int) -> str:
        text = needed(node).strip()
        match = _LETTERED.match(text) if self.lettered else None
        if match is None:
            return text
        if match[1] != LETTERS[number]:
            raise node.error(f"option {number + 1} begins with {match[1]}", "mend the row")
        return text[match.end() :].strip()


@dataclass(frozen=True, kw_only=True)
class InQuestion:
    """Options that stand in the question or the picture: only their letters are known."""

    letters: str = "ABCD"

    def __call__(self, row: Row) -> list[str]:
        """See `Options`."""
        return ["" for _ in self.letters]


@dataclass(frozen=True, kw_only=True)
class ListOrInQuestion:
    """A column with a list; where it is empty, the options stand in the question or the picture."""

    column: str = "options"
    letters: str = "ABCD"

    def __call__(self, row: Row) -> list[str]:
        """See `Options`."""
        return ListColumn(column=self.column)(row) or InQuestion(letters=self.letters)(row)


@dataclass(frozen=True, kw_only=True)
class RightLetter:
    """A column with the letter, alone, in brackets or before a full stop."""

    column: str = "answer"

    def __call__(self, row: Row, texts: Sequence[str]) -> int:
        """See `Right`."""
        node = at(row, self.column)
        match = _LETTER.fullmatch(needed(node))
        number = LETTERS.index(match[1]) if match else len(texts)
        if number >= len(texts):
            raise node.error(f"{node.value!r} is no letter of {len(texts)} options", "mend the row")
        return number


@dataclass(frozen=True, kw_only=True)
class RightIndex:
    """A column with the number of the option.

    Attributes:
        column: its name.
        first: number of the first option.
    """

    column: str = "answer"
    first: int = 0

    def __call__(self, row: Row, texts: Sequence[str]) -> int:
        """See `Right`."""
        node = at(row, self.column)
        number = number_of(node) - self.first
        if not number.is_integer() or not 0 <= number < len(texts):
            raise node.error(f"{node.value!r} is none of {len(texts)} options", "mend the row")
        return int(number)


@dataclass(frozen=True, kw_only=True)
class RightText:
    """A column with the text of the option."""

    column: str = "answer"

    def __call__(self, row: Row, texts: Sequence[str]) -> int:
        """See `Right`."""
        node = at(row, self.column)
        said = needed(node).strip()
        number = next((i for i, text in enumerate(texts) if text.strip() == said), None)
        if number is None:
            raise node.error(f"{node.value!r} is none of the options {list(texts)}", "mend the row")
        return number


@dataclass(frozen=True)
class FirstIsRight:
    """The first option is right: for those whose order is drawn."""

    def __call__(self, row: Row, texts: Sequence[str]) -> int:
        """See `Right`."""
        return 0
