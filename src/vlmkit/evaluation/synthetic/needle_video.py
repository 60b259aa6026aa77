"""A needle in a few frames of a long video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from vlmkit.data.media import FrameSequence
from vlmkit.data.record import TextPart, VideoPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.metrics.needle import Needle
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, child, one_of, some_of
from vlmkit.evaluation.synthetic.haystack import cell_of, check_grid, marked_places
from vlmkit.evaluation.synthetic.needles import BLUE, RED, NeedleKind
from vlmkit.evaluation.synthetic.things import PAPERS, THINGS, any_artist, drawing, paste

_SWINGING = 3
"""Things that are to be seen in every frame."""


@dataclass(frozen=True, kw_only=True)
class NeedleInVideo:
    """Things swing to and fro, and for a moment the needle is to be seen.

    Frames stand in temporal patches of two, so a needle of two frames, or any even number, fills its own.

    Attributes:
        needle: what is looked for.
        lengths: numbers of frames; multiples of `needle_frames`.
        depths: of the needle, 0 for the first moment and 1 for the last.
        fps: frames a second. The benchmark's budget must keep all of them.
        needle_frames: for how many frames a needle or a distractor is to be seen.
        distractors: moments at most that show another answer in another colour.
        side: of the frames, in pixels.
    """

    needle: NeedleKind
    lengths: Sequence[int]
    depths: Sequence[float]
    fps: float = 1.0
    needle_frames: int = 2
    distractors: int = 3
    side: int = 128

    def __post_init__(self) -> None:
        """Refuse lengths that a needle does not divide."""
        check_grid(self.lengths, self.depths, self.distractors)
        if odd := [length for length in self.lengths if length % self.needle_frames]:
            raise ConfigError(
                f"lengths {odd} are no multiples of needle_frames={self.needle_frames}"
            )

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        cell = cell_of(index, self.lengths, self.depths)
        places = marked_places(rng, cell, cell.length // self.needle_frames, self.distractors)
        answers = self.needle.answers(rng, len(places))
        marks = {
            place: (answer, RED if i == 0 else BLUE, child(rng))
            for i, (place, answer) in enumerate(zip(places, answers, strict=True))
        }
        scene = child(rng)
        frames = tuple(
            DrawnImage(
                partial(self._draw, scene, i, marks.get(i // self.needle_frames)), self.side, self.side,
                f"frame {i + 1} of {cell.length}",
            )
            for i in range(cell.length)
        )  # fmt: skip
        video = FrameSequence.at_fps(frames, self.fps, f"drawn video {index}")
        words = TextPart(f"Watch the whole video. {self.needle.question}")
        target = Needle(answers[0], cell.length, cell.depth, self.needle.chance)
        return Made(parts=(VideoPart(video), words), target=target, categories=cell.categories)

    def _draw(self, seed: int, frame: int, mark: tuple[str, str, int] | None) -> Image.Image:
        rng = np.random.default_rng(seed)
        canvas = Image.new("RGB", (self.side, self.side), one_of(rng, PAPERS))
        lane = self.side // _SWINGING
        for number, thing in enumerate(some_of(rng, THINGS, _SWINGING)):
            image = drawing(thing, any_artist(rng), lane * 9 // 10)
            period_s, phase = rng.uniform(6, 20), rng.uniform(0, 2 * math.pi)
            swing = (1 + math.sin(2 * math.pi * frame / self.fps / period_s + phase)) / 2
            left = round(swing * (self.side - image.width))
            paste(canvas, image, left, number * lane + (lane - image.height) // 2)
        if mark is not None:
            answer, colour, place = mark
            self.needle.mark(canvas, answer, colour, np.random.default_rng(place))
        return canvas
