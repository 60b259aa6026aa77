"""A needle in one of many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from vlmkit.data.record import ImagePart, TextPart
from vlmkit.evaluation.metrics.needle import Needle
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, child, one_of
from vlmkit.evaluation.synthetic.haystack import cell_of, check_grid, marked_places
from vlmkit.evaluation.synthetic.needles import BLUE, RED, NeedleKind
from vlmkit.evaluation.synthetic.things import PAPERS, THINGS, any_artist, drawing, paste


@dataclass(frozen=True, kw_only=True)
class NeedleInPictures:
    """Many pictures of things, one of which bears the needle.

    Attributes:
        needle: what is looked for.
        lengths: numbers of pictures.
        depths: of the needle among them, 0 for the first and 1 for the last.
        distractors: pictures at most that bear another answer in another colour.
        side: of a picture, in pixels.
    """

    needle: NeedleKind
    lengths: Sequence[int]
    depths: Sequence[float]
    distractors: int = 3
    side: int = 128

    def __post_init__(self) -> None:
        """Refuse a grid without cells."""
        check_grid(self.lengths, self.depths, self.distractors)

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        cell = cell_of(index, self.lengths, self.depths)
        places = marked_places(rng, cell, cell.length, self.distractors)
        answers = self.needle.answers(rng, len(places))
        marks = {
            place: (answer, RED if i == 0 else BLUE)
            for i, (place, answer) in enumerate(zip(places, answers, strict=True))
        }
        shown = tuple(
            ImagePart(
                DrawnImage(
                    partial(self._draw, child(rng), marks.get(place)), self.side, self.side,
                    f"picture {place + 1} of {cell.length}",
                )
            )
            for place in range(cell.length)
        )  # fmt: skip
        words = TextPart(f"Look at all pictures. {self.needle.question}")
        target = Needle(answers[0], cell.length, cell.depth, self.needle.chance)
        return Made(parts=(*shown, words), target=target, categories=cell.categories)

    def _draw(self, seed: int, mark: tuple[str, str] | None) -> Image.Image:
        rng = np.random.default_rng(seed)
        canvas = Image.new("RGB", (self.side, self.side), one_of(rng, PAPERS))
        image = drawing(one_of(rng, THINGS), any_artist(rng), self.side * 7 // 10)
        paste(canvas, image, (self.side - image.width) // 2, (self.side - image.height) // 2)
        if mark is not None:
            self.needle.mark(canvas, *mark, rng)
        return canvas
