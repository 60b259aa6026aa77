"""Multiple choice: options under a question, one of them right."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmkit.data.sizes.settings_key import plain, without
from vlmkit.data.sources.row import Row
from vlmkit.data.sources.table import Table
from vlmkit.evaluation.asks.options import (
    LETTERS,
    LetterColumns,
    Options,
    Right,
    RightLetter,
)
from vlmkit.evaluation.asks.prompted import asked, optional
from vlmkit.evaluation.asks.shown import Naming, Pictures, Shown
from vlmkit.evaluation.asks.values import at, fill, number_of, text_of
from vlmkit.evaluation.metrics.multiple_choice import Choice
from vlmkit.evaluation.question import Question

_CIRCLE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """A question with its options; the target is a `Choice`.

    Where options have the same words, all are right that have those of the right one.

    Attributes:
        prompt: `{hint}` and `{options}` are what the other fields make; other names are columns.
        option: of one option, with `{letter}` and `{text}`; options are joined by line breaks.
        hint: comes before questions whose `hint_column` is filled.
        hint_column: a column.
        options: finds them.
        right: finds which is right.
        shuffle_seed: options are put in an order drawn from it and the key of the question; None keeps
            theirs.
        shown: finds pictures or a video.
        naming: of the question.
        interleaved: see `Prompted`; options may hold markers, too.
        system: turn of the system; empty: none.
    """

    prompt: str = (
        "{hint}Question: {question}\nOptions:\n{options}\n"
        "Please select the correct answer from the options above."
    )
    option: str = "{letter}. {text}"
    hint: str = "Hint: {hint}\n"
    hint_column: str = "hint"
    options: Options = field(default_factory=LetterColumns)
    right: Right = field(default_factory=RightLetter)
    shuffle_seed: int | None = None
    shown: Shown = field(default_factory=Pictures)
    naming: Naming = field(default_factory=Naming)
    interleaved: bool = False
    system: str = ""

    def __call__(self, row: Mapping[str, Any], index: int, origin: str) -> Question:
        """See `Ask`."""
        return self.rotated(row, index, origin, None)

    def rotated(
        self, row: Mapping[str, Any], index: int, origin: str, shift: int | None
    ) -> Question:
        """The question with its options moved up by `shift` places, those of the top to the bottom."""
        looked_at = Row(row, origin, index)
        texts = self.texts(looked_at)
        right = self.right(looked_at, texts)
        order = list(range(len(texts)))
        if self.shuffle_seed is not None:
            random.Random(f"{self.shuffle_seed}/{self.naming.key_of(looked_at)}").shuffle(order)
        if shift is not None:
            order = order[shift:] + order[:shift]
        ordered = [texts[i] for i in order]
        lines = [
            self.option.format(letter=letter, text=text)
            for letter, text in zip(LETTERS, ordered, strict=False)
        ]
        values = {
            "hint": optional(self.hint, looked_at, self.hint_column),
            "options": "\n".join(lines),
            "letters": ", ".join(LETTERS[: len(texts)]),
        }
        return asked(
            looked_at,
            self.shown(looked_at),
            fill(self.prompt, looked_at, values),
            Choice.of(_letters(ordered, order.index(right)), ordered),
            self.naming,
            interleaved=self.interleaved,
            system=self.system,
            suffix="" if shift is None else f"+{shift}",
        )

    def texts(self, row: Row) -> list[str]:
        """Of the options.

        Raises:
            RecordError: there are fewer than two, or more than there are letters.
        """
        texts = self.options(row)
        if not 2 <= len(texts) <= len(LETTERS):
            raise row.error(f"it has {len(texts)} options", "multiple choice needs 2 to 26")
        return texts


def _letters(texts: list[str], right: int) -> str | list[str]:
    """Of the right option, and of others with the same words; one letter is a text."""
    same = [LETTERS[i] for i, text in enumerate(texts) if text and text == texts[right]]
    return same if len(same) > 1 else LETTERS[right]


class RotatedQuestions:
    """Every question once for each rotation of its options, as MMBench's CircularEval asks.

    The rotations of a question are one group. Rows whose `index` is 1,000,000 or more are rotations that
    the file of VLMEvalKit already holds; they are left out, as all are made here.

    Args:
        table: is read once, to count options.
        ask: multiple choice.
        index: column with whole numbers.
    """

    def __init__(self, table: Table, ask: MultipleChoice, index: str = "index") -> None:
        self.table, self.ask = table, ask
        self.fingerprint = table.fingerprint
        self._places: list[tuple[int, int]] = []
        for i in range(len(table)):
            row = Row(table[i], table.origin(i), i)
            if text_of(at(row, index)) is not None and number_of(at(row, index)) >= _CIRCLE:
                continue
            self._places += [(i, shift) for shift in range(len(ask.texts(row)))]

    @property
    def settings(self) -> Any:
        """Of what asks."""
        return {"rotations": "all", "ask": without(plain(self.ask), "media")}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Question:
        """See `Questions`."""
        row, shift = self._places[index]
        return self.ask.rotated(self.table[row], row, self.table.origin(row), shift)
