"""Where is it? Boxes of drawings on a canvas, to the pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vlmkit.data.geometry.shapes import Box, Grounding, grounding_text
from vlmkit.data.geometry.spaces import SourcePixels
from vlmkit.data.record import ImagePart, TextPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.counting import draw_things, placed_things
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, one_of, some_of
from vlmkit.evaluation.synthetic.things import PAPERS, THINGS, drawing


@dataclass(frozen=True, kw_only=True)
class GroundThings:
    """One thing is asked for among several, each of another kind.

    Who sees where things are but not what they are is right 1 time in `things`.

    Attributes:
        things: on the picture.
        sizes_px: smallest and largest longer side of a drawing.
        width: of the picture.
        height: of the picture.
    """

    things: int = 6
    sizes_px: tuple[int, int] = (48, 128)
    width: int = 640
    height: int = 448

    def __post_init__(self) -> None:
        """Refuse more kinds than there are."""
        if not 1 <= self.things <= len(THINGS):
            raise ConfigError(f"things is {self.things}; it must lie in 1..{len(THINGS)}")

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        shown = some_of(rng, THINGS, self.things)
        placed = placed_things(rng, shown, self.sizes_px, self.width, self.height)
        space = SourcePixels(width=self.width, height=self.height)
        boxes = []
        for thing, artist, side, left, top in placed:
            across, down = drawing(thing, artist, side).size
            boxes.append(Box(left, top, left + across, top + down, space))
        paper = one_of(rng, PAPERS)
        image = DrawnImage(
            partial(draw_things, placed, paper, self.width, self.height), self.width, self.height
        )
        wanted = int(rng.integers(self.things))
        ask = TextPart(
            f"Locate this: {shown[wanted]}. Answer with a JSON list of one object with bbox_2d, as "
            "[x1, y1, x2, y2] from 0 to 1000, and label."
        )
        size = (
            "small"
            if max(boxes[wanted].x2 - boxes[wanted].x1, boxes[wanted].y2 - boxes[wanted].y1) < 80
            else "large"
        )
        said = [
            grounding_text([Grounding(box, thing)]) for box, thing in zip(boxes, shown, strict=True)
        ]
        meta = {"right": said[wanted], "choices": said}
        return Made(
            parts=(ImagePart(image), ask),
            target=boxes[wanted],
            categories={"size": size},
            meta=meta,
        )
