"""Which space shapes are written in, weighed from where their far corners lie.

The likelihood of a space takes far corners as even over its extent, with a few of them at the very edge:
among spaces that hold all shapes the tightest wins, the more so the more shapes there are. A space whose
edge shapes cross is out, for a picture's edge is where objects end and not where they thin out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from vlmkit.data.image import smart_resize
from vlmkit.errors import MediaError

Size = tuple[int, int]
"""Height and width in pixels."""

_DECISIVE = math.log(1e4)  # odds at which one space excludes another
_AT_EDGE = 0.02  # prior share of coordinates at the very edge
_STRAY, _STRAY_DENSITY = 1e-3, 1e-8  # prior share of mistakes, spread over 10,000 x 10,000
_NEAR, _VERY_NEAR = 0.1, 0.03  # how near the edge, as shares of the extent
_CENTRED = math.log(16)  # per shape, where none comes near an edge


class Kind(StrEnum):
    """What coordinates count, or why that is not known."""

    RELATIVE_1000 = "0 to 1000"
    RELATIVE_1 = "0 to 1"
    SOURCE_PIXELS = "source pixels"
    RESIZED_PIXELS = "resized pixels"
    AMBIGUOUS = "ambiguous"
    MIXED = "mixed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Resizing:
    """Bounds that pictures are resized within; see `smart_resize`."""

    name: str
    factor: int
    min_pixels: int
    max_pixels: int

    def __call__(self, size: Size) -> Size:
        """The new size, or the old one of a picture too long to be resized."""
        return _resized(size, self.factor, self.min_pixels, self.max_pixels)


@lru_cache(maxsize=4096)
def _resized(size: Size, factor: int, min_pixels: int, max_pixels: int) -> Size:
    bounds = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
    try:
        return smart_resize(*size, **bounds)
    except MediaError:
        return size


PUBLISHED_RESIZING = (
    Resizing("Qwen2.5-VL", 28, 4 * 28**2, 16_384 * 28**2),
    Resizing("Qwen2.5-VL, 256 to 1280 tokens", 28, 256 * 28**2, 1280 * 28**2),
    Resizing("Qwen3-VL", 32, 64 * 32**2, 16_384 * 32**2),
)


@dataclass(frozen=True)
class Candidate:
    """A space that a source may be written in."""

    kind: Kind
    resizing: Resizing | None = None
    swapped: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return self.kind.value + (", y before x" if self.swapped else "")

    @property
    def full_name(self) -> str:
        """For people who ask which resizing is meant."""
        return f"{self.name} ({self.resizing.name})" if self.resizing else self.name

    @property
    def edge(self) -> float:
        """How far from the extent a coordinate still counts as at the edge."""
        return 1e-3 if self.kind is Kind.RELATIVE_1 else 1.0

    def extent(self, size: Size) -> tuple[float, float]:
        """Largest first and largest second coordinate in a picture."""
        if self.kind is Kind.RELATIVE_1000:
            return 1000, 1000
        if self.kind is Kind.RELATIVE_1:
            return 1, 1
        height, width = self.resizing(size) if self.resizing else size
        return (height, width) if self.swapped else (width, height)


def candidates_for(resizing: Sequence[Resizing]) -> tuple[Candidate, ...]:
    """All that is weighed. Of those with equal extents in every picture, the first one counts."""
    resized = ((Kind.RESIZED_PIXELS, rule) for rule in resizing)
    pixels = [(Kind.SOURCE_PIXELS, None), *resized]
    return (
        Candidate(Kind.RELATIVE_1000),
        Candidate(Kind.RELATIVE_1),
        *(Candidate(kind, rule) for kind, rule in pixels),
        *(Candidate(kind, rule, swapped=True) for kind, rule in pixels),
    )


@dataclass
class Tally:
    """What one candidate makes of the shapes so far."""

    log_likelihood: float = 0.0
    num_fits: int = 0
    num_inside: int = 0  # near the edge, within it
    num_at_edge: int = 0  # very near the edge, within it
    num_beyond: int = 0  # near the edge, past it
    reach: float = 0.0  # of the extent that shapes within it use

    def add(self, view: _View) -> None:
        """Count one shape."""
        self.log_likelihood += math.log((1 - _STRAY) * view.density + _STRAY * _STRAY_DENSITY)
        self.num_fits += view.fits
        self.num_inside += view.fits and view.reach > 1 - _NEAR
        self.num_at_edge += view.fits and view.reach > 1 - _VERY_NEAR
        self.num_beyond += not view.fits and view.reach <= 1 + _NEAR
        self.reach = max(self.reach, view.reach if view.fits else 0.0)

    def is_refuted(self, num_shapes: int) -> bool:
        """Whether shapes cross its edge."""
        crossing = self.num_beyond >= 3 and self.num_beyond > 0.05 * self.num_inside
        return crossing or num_shapes - self.num_fits > 1 + 0.02 * num_shapes

    def is_reached(self, num_shapes: int) -> bool:
        """Whether shapes go up to its edge, and not only the outermost of them."""
        return self.num_at_edge >= 2 and self.num_inside >= max(5, 0.05 * num_shapes)


@dataclass(frozen=True)
class _View:
    """One shape as one candidate sees it: on which share of the extent, how likely."""

    fits: bool
    reach: float
    density: float

    @classmethod
    def of(cls, candidate: Candidate, far: tuple[float, float], sizes: Sequence[Size]) -> _View:
        """`far` is the far corner. Of several pictures, each is as likely to be the one meant."""
        edge, density, reach, fits = candidate.edge, 0.0, math.inf, False
        for size in sizes:
            extent = candidate.extent(size)
            reach = min(reach, max(n / limit for n, limit in zip(far, extent, strict=True)))
            if all(n <= limit + edge / 2 for n, limit in zip(far, extent, strict=True)):
                fits = True  # half a unit is rounding
                density += math.prod(
                    (1 - _AT_EDGE) / (limit + edge / 2)
                    + (n >= limit - edge) * _AT_EDGE / (1.5 * edge)
                    for n, limit in zip(far, extent, strict=True)
                )
        return cls(fits, reach, density / len(sizes))


@dataclass(frozen=True)
class Verdict:
    """What a source is most likely written in.

    Attributes:
        kind: the one space left, or why there is none.
        swapped: whether y stands before x.
        candidates: the spaces that are left.
        evidence: in words.
    """

    kind: Kind
    swapped: bool = False
    candidates: tuple[Candidate, ...] = ()
    evidence: str = ""

    @property
    def may_be_relative(self) -> bool:
        """Whether 0 to 1000, which Qwen3-VL expects, is not excluded."""
        unknown = self.kind is Kind.UNKNOWN
        return unknown or any(c.kind is Kind.RELATIVE_1000 for c in self.candidates)

    def __str__(self) -> str:
        """The space, or those that are left."""
        names = " or ".join(dict.fromkeys(c.name for c in self.candidates))
        return f"{self.kind.value}: {names}" if self.kind is Kind.AMBIGUOUS else names or self.kind


@dataclass
class Weighing:
    """Weighs candidates, shape by shape, in constant memory."""

    candidates: Sequence[Candidate]
    num_shapes: int = field(init=False, default=0)
    tallies: dict[Candidate, Tally] = field(init=False)

    def __post_init__(self) -> None:
        """One tally per candidate."""
        self.tallies = {candidate: Tally() for candidate in self.candidates}

    def add(self, far: tuple[float, float], sizes: Sequence[Size]) -> list[Candidate]:
        """Weigh one shape, unless it fits no candidate.

        Args:
            far: the larger of the first and of the second coordinates; none is negative.
            sizes: of the pictures that may be meant.

        Returns:
            The candidates it fits.
        """
        if max(far) == 0:  # the origin belongs to all and tells nothing
            return list(self.candidates)
        views = {candidate: _View.of(candidate, far, sizes) for candidate in self.candidates}
        fitting = [candidate for candidate, view in views.items() if view.fits]
        if fitting:
            self.num_shapes += 1
            for candidate, view in views.items():
                self.tallies[candidate].add(view)
        return fitting

    def left(self) -> list[Candidate]:
        """Candidates that nothing excludes."""
        possible: dict[Candidate, Tally] = {}
        for candidate, tally in self.tallies.items():
            # An equal tally: the same extent in every picture, or nothing to tell them apart.
            if not tally.is_refuted(self.num_shapes) and tally not in possible.values():
                possible[candidate] = tally
        if not possible:
            return []
        reached = [tally for tally in possible.values() if tally.is_reached(self.num_shapes)]
        best = max(tally.log_likelihood for tally in reached or possible.values())
        # Shapes that never come near an edge may all stand in the middle: that needs more evidence.
        margin = _DECISIVE + (0 if reached else _CENTRED * self.num_shapes)
        left = [c for c, tally in possible.items() if tally.log_likelihood >= best - margin]
        straight = {(c.kind, c.resizing) for c in left if not c.swapped}
        return [c for c in left if not c.swapped or (c.kind, c.resizing) not in straight]

    def verdict(self, evidence: str = "") -> Verdict:
        """What is left, in words."""
        if not self.num_shapes:
            return Verdict(Kind.UNKNOWN, evidence=evidence)
        left = self.left()
        names = {(candidate.kind, candidate.swapped) for candidate in left}
        if len(names) == 1:
            ((kind, swapped),) = names
        else:
            kind, swapped = (Kind.AMBIGUOUS if names else Kind.MIXED), False
        return Verdict(kind, swapped, tuple(left), evidence)
