"""Needles: a mark in red that is asked about; the same marks in blue are there to mislead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, ImageDraw

from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.fonts import BOLD, check_glyphs, font
from vlmkit.evaluation.synthetic.generated import Rng, some_of
from vlmkit.evaluation.synthetic.things import THINGS, any_artist, drawing

RED, BLUE = "#d11f1f", "#1f56d1"


class NeedleKind(Protocol):
    """What is hidden in a haystack, and how it is asked for."""

    @property
    def question(self) -> str:
        """After the words that say where to look."""
        ...

    @property
    def chance(self) -> float:
        """Of a blind guess among the possible answers."""
        ...

    def answers(self, rng: Rng, count: int) -> list[str]:
        """Different answers: the first is the needle's, the others mislead."""
        ...

    def mark(self, picture: Image.Image, answer: str, colour: str, rng: Rng) -> None:
        """Put an answer on a picture, in red for the needle and in blue for what misleads."""
        ...


@dataclass(frozen=True, kw_only=True)
class WordNeedle:
    """A word on a red label.

    Attributes:
        words: those that may stand there; the question lists them.
    """

    words: Sequence[str] = (
        *("amber", "basil", "cedar", "delta"),
        *("ember", "fjord", "grove", "heron"),
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        check_glyphs("".join(self.words), [BOLD])

    @property
    def question(self) -> str:
        """See `NeedleKind`."""
        return (
            "Exactly one red label is to be seen, with a word on it; words on blue labels do not count. "
            f"Which word is on the red label? Answer with one of: {', '.join(self.words)}."
        )

    @property
    def chance(self) -> float:
        """See `NeedleKind`."""
        return 1 / len(self.words)

    def answers(self, rng: Rng, count: int) -> list[str]:
        """See `NeedleKind`."""
        return _enough(some_of(rng, self.words, count), count)

    def mark(self, picture: Image.Image, answer: str, colour: str, rng: Rng) -> None:
        """See `NeedleKind`."""
        width, height = picture.size
        high = height // 4
        top = int(rng.integers(0, height - high + 1))
        pen = ImageDraw.Draw(picture)
        pen.rectangle((0, top, width, top + high), fill=colour)
        size = min(high * 3 // 4, width // 5)
        pen.text(
            (width / 2, top + high / 2), answer, fill="white", font=font(BOLD, size), anchor="mm"
        )


@dataclass(frozen=True, kw_only=True)
class ThingNeedle:
    """A thing in a red frame.

    Attributes:
        things: those that may stand there; the question lists them.
    """

    things: Sequence[str] = ("apple", "bell", "bicycle", "car", "cat", "crown", "guitar", "rocket")

    @property
    def question(self) -> str:
        """See `NeedleKind`."""
        return (
            "Exactly one thing stands in a red frame; things in blue frames do not count. Which thing is in "
            f"the red frame? Answer with one of: {', '.join(self.things)}."
        )

    @property
    def chance(self) -> float:
        """See `NeedleKind`."""
        return 1 / len(self.things)

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if unknown := sorted(set(self.things) - set(THINGS)):
            raise ConfigError(f"things {unknown} are not drawn; there are {', '.join(THINGS)}")

    def answers(self, rng: Rng, count: int) -> list[str]:
        """See `NeedleKind`."""
        return _enough(some_of(rng, self.things, count), count)

    def mark(self, picture: Image.Image, answer: str, colour: str, rng: Rng) -> None:
        """See `NeedleKind`."""
        side = min(picture.size) * 6 // 10
        left = int(rng.integers(0, picture.width - side + 1))
        top = int(rng.integers(0, picture.height - side + 1))
        pen = ImageDraw.Draw(picture)
        line = max(3, side // 12)
        pen.rectangle(
            (left, top, left + side - 1, top + side - 1), fill="white", outline=colour, width=line
        )
        image = drawing(answer, any_artist(rng), side - 4 * line)
        picture.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))


@dataclass(frozen=True, kw_only=True)
class NumberNeedle:
    """A number on a red disc.

    Attributes:
        smallest: number.
        largest: number.
    """

    smallest: int = 10
    largest: int = 99

    @property
    def question(self) -> str:
        """See `NeedleKind`."""
        return (
            "Exactly one red disc is to be seen, with a number on it; numbers on blue discs do not count. "
            f"Which number is on the red disc? It is one from {self.smallest} to {self.largest}. Answer "
            "with the number."
        )

    @property
    def chance(self) -> float:
        """See `NeedleKind`."""
        return 1 / (self.largest - self.smallest + 1)

    def answers(self, rng: Rng, count: int) -> list[str]:
        """See `NeedleKind`."""
        numbers = [str(number) for number in range(self.smallest, self.largest + 1)]
        return _enough(some_of(rng, numbers, count), count)

    def mark(self, picture: Image.Image, answer: str, colour: str, rng: Rng) -> None:
        """See `NeedleKind`."""
        side = min(picture.size) * 45 // 100
        left = int(rng.integers(0, picture.width - side + 1))
        top = int(rng.integers(0, picture.height - side + 1))
        pen = ImageDraw.Draw(picture)
        pen.ellipse((left, top, left + side - 1, top + side - 1), fill=colour)
        middle = (left + side / 2, top + side / 2)
        size = side * 45 // 100
        pen.text(middle, answer, fill="white", font=font(BOLD, size), anchor="mm")


def _enough(answers: list[str], count: int) -> list[str]:
    if len(answers) < count:
        raise ConfigError(
            f"a needle and {count - 1} distractors need {count} different answers, there are "
            f"{len(answers)}: take fewer distractors, or more words, things or numbers"
        )
    return answers
