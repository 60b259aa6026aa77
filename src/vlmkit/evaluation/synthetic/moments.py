"""When does it move? Things cross a scene one after the other, and each is asked about by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from vlmkit.data.geometry.shapes import TimeSpan
from vlmkit.data.media import FrameSequence
from vlmkit.data.record import TextPart, VideoPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, one_of, some_of
from vlmkit.evaluation.synthetic.things import PAPERS, THINGS, any_artist, drawing, paste

Mover = tuple[str, str, int, int]
"""Thing, artist, frame at which it starts, frame at which it arrives."""


@dataclass(frozen=True, kw_only=True)
class GroundMoments:
    """Things stand at the left, cross to the right within a stretch of their own, and stay there.

    Who answers with the whole video reaches a mean IoU of `chance`.

    Attributes:
        frames: of a video.
        fps: frames a second. The benchmark's budget must keep all of them.
        movement_frames: shortest and longest movement, in frames.
        things: in a scene, each in a lane of its own.
        width: of the frames, in pixels.
        height: of the frames.
    """

    frames: int = 40
    fps: float = 2.0
    movement_frames: tuple[int, int] = (4, 16)
    things: int = 3
    width: int = 256
    height: int = 192

    def __post_init__(self) -> None:
        """Refuse movements that are longer than the video."""
        shortest, longest = self.movement_frames
        if not 1 <= shortest <= longest < self.frames:
            raise ConfigError(
                f"movement_frames is {list(self.movement_frames)} and frames {self.frames}; give shortest "
                "and longest, below frames"
            )
        if not 1 <= self.things <= len(THINGS):
            raise ConfigError(f"things is {self.things}; it must lie in 1..{len(THINGS)}")

    @property
    def chance(self) -> float:
        """Expected IoU of the whole video as the answer."""
        return sum(self.movement_frames) / 2 / self.frames

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        movers = [self._mover(rng, thing) for thing in some_of(rng, THINGS, self.things)]
        paper = one_of(rng, PAPERS)
        shown = tuple(
            DrawnImage(partial(self._draw, movers, paper, i), self.width, self.height)
            for i in range(self.frames)
        )
        video = FrameSequence.at_fps(shown, self.fps, f"drawn video {index}")
        thing, _, start, stop = movers[int(rng.integers(self.things))]
        ask = TextPart(
            f"From when to when does this move: {thing}? Answer as 'start - end seconds', such as "
            "'2.5 - 4.0 seconds'."
        )
        length = "short" if stop - start < sum(self.movement_frames) / 2 else "long"
        return Made(
            parts=(VideoPart(video), ask),
            target=TimeSpan(start / self.fps, stop / self.fps),
            categories={"movement": length},
        )

    def _mover(self, rng: Rng, thing: str) -> Mover:
        shortest, longest = self.movement_frames
        duration = int(rng.integers(shortest, longest + 1))
        start = int(rng.integers(0, self.frames - duration))
        return thing, any_artist(rng), start, start + duration

    def _draw(self, movers: Sequence[Mover], paper: str, frame: int) -> Image.Image:
        canvas = Image.new("RGB", (self.width, self.height), paper)
        lane = self.height // len(movers)
        for number, (thing, artist, start, stop) in enumerate(movers):
            image = drawing(thing, artist, lane * 85 // 100)
            share = min(max((frame - start) / (stop - start), 0.0), 1.0)
            left = 4 + round(share * (self.width - image.width - 8))
            paste(canvas, image, left, number * lane + (lane - image.height) // 2)
        return canvas
