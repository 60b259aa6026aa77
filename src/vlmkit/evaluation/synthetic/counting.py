"""How many of a kind are there among others?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from PIL import Image

from vlmkit.data.record import ImagePart, TextPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, one_of, some_of
from vlmkit.evaluation.synthetic.things import (
    PAPERS,
    THINGS,
    any_artist,
    drawing,
    paste,
    places,
)

Placed = tuple[str, str, int, int, int]
"""Thing, artist, longer side, left, top."""


@dataclass(frozen=True, kw_only=True)
class CountThings:
    """Things of one kind among things of other kinds, none touching another.

    Every number from 1 to `most` is asked about equally often, so that a guess is right 1 time in `most`.

    Attributes:
        most: things of the kind that is counted.
        most_others: things of other kinds.
        kinds: of those others.
        sizes_px: smallest and largest longer side of a drawing.
        width: of the picture.
        height: of the picture.
    """

    most: int = 9
    most_others: int = 8
    kinds: int = 3
    sizes_px: tuple[int, int] = (40, 72)
    width: int = 512
    height: int = 384

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
        if self.most < 1 or self.most_others < 0 or not 0 < self.kinds < len(THINGS):
            raise ConfigError(
                f"most is {self.most}, most_others {self.most_others} and kinds {self.kinds}: most and "
                f"kinds must be positive, kinds below {len(THINGS)}"
            )

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        number = index % self.most + 1
        counted, *others = some_of(rng, THINGS, 1 + self.kinds)
        shown = [counted] * number
        shown += [one_of(rng, others) for _ in range(int(rng.integers(self.most_others + 1)))]
        placed = placed_things(rng, shown, self.sizes_px, self.width, self.height)
        image = DrawnImage(
            partial(draw_things, placed, one_of(rng, PAPERS), self.width, self.height),
            self.width,
            self.height,
        )
        ask = TextPart(
            f"How many drawings of this kind are there: {counted}? Answer with a number from 1 to "
            f"{self.most}."
        )
        categories = {"number": str(number), "others": "none" if len(shown) == number else "some"}
        return Made(parts=(ImagePart(image), ask), target=number, categories=categories)


def placed_things(
    rng: Rng, things: list[str], sizes_px: tuple[int, int], width: int, height: int
) -> list[Placed]:
    """Sizes, artists and places of things, by chance; none touches another."""
    drawn = [
        (thing, any_artist(rng), int(rng.integers(sizes_px[0], sizes_px[1] + 1)))
        for thing in things
    ]
    corners = places(rng, [drawing(*one).size for one in drawn], width, height)
    return [(*one, *corner) for one, corner in zip(drawn, corners, strict=True)]


def draw_things(placed: list[Placed], paper: str, width: int, height: int) -> Image.Image:
    """Put all of them on paper."""
    canvas = Image.new("RGB", (width, height), paper)
    for thing, artist, side, left, top in placed:
        paste(canvas, drawing(thing, artist, side), left, top)
    return canvas
