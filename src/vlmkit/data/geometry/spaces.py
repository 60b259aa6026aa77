"""Grids over pictures and crops: what numbers of a box count, and the way from one grid to another.

A *view* is what a grid is laid over: a whole `Picture`, or a `Crop` of one. A *space* is a grid over a
view. Every space is an axis-aligned affine map to the unit square of its root picture, so coordinates
go to any space of the same picture and to none of another. x and y run from edge to edge: (0, 0) is the
outer corner of the first pixel, (width, height) that of the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Self

from vlmkit.errors import DataError, Reason

if TYPE_CHECKING:
    from vlmkit.data.geometry.shapes import Box


@dataclass(frozen=True)
class Picture:
    """A whole picture, the root of views. `image` counts the conversation's images from 0."""

    image: int = 0

    @property
    def root(self) -> Picture:
        """Itself."""
        return self

    def to_root(self, x: float, y: float) -> tuple[float, float]:
        """From the unit square of this view to that of the root picture."""
        return x, y

    def from_root(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of `to_root`."""
        return x, y


@dataclass(frozen=True)
class Crop:
    """What a tool cut out of a picture, or out of another crop, and shows as a picture of its own.

    Attributes:
        box: what was cut, in any space. Where whole pixels were cut, the box that was cut and not
            the one that was asked for. It may reach beyond the picture, which is padding.

    Raises:
        DataError: the box has no area.
    """

    box: Box

    def __post_init__(self) -> None:
        """Refuse what cannot be inverted."""
        if self.box.x1 == self.box.x2 or self.box.y1 == self.box.y2:
            refuse(f"{self.box.name} has no area, so nothing can be cut out with it")

    @property
    def root(self) -> Picture:
        """The picture that everything was cut from."""
        return self.box.space.on.root

    def to_root(self, x: float, y: float) -> tuple[float, float]:
        """See `Picture.to_root`."""
        box = self.box
        across = box.x1 + x * (box.x2 - box.x1)
        down = box.y1 + y * (box.y2 - box.y1)
        return box.space.to_root(across, down)

    def from_root(self, x: float, y: float) -> tuple[float, float]:
        """See `Picture.from_root`."""
        box = self.box
        across, down = box.space.from_root(x, y)
        return (across - box.x1) / (box.x2 - box.x1), (down - box.y1) / (box.y2 - box.y1)


View = Picture | Crop
FIRST_PICTURE = Picture()


@dataclass(frozen=True)
class Space:
    """A grid of `width` by `height` units over a view. Its subclasses name the usual ones."""

    width: float
    height: float
    on: View = FIRST_PICTURE

    def __post_init__(self) -> None:
        """Refuse a grid without area."""
        if not (finite(self.width, self.height) and self.width > 0 and self.height > 0):
            refuse(f"{self} must be wider and higher than 0")

    def to_root(self, x: float, y: float) -> tuple[float, float]:
        """From this space to the unit square of the root picture."""
        return self.on.to_root(x / self.width, y / self.height)

    def from_root(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of `to_root`."""
        x, y = self.on.from_root(x, y)
        return x * self.width, y * self.height

    def convert(self, x: float, y: float, target: Space) -> tuple[float, float]:
        """From this space to another one of the same picture.

        Raises:
            DataError: they belong to different pictures.
        """
        if self == target:
            return x, y
        if self.on == target.on:  # also more exact than by way of the root
            return x * target.width / self.width, y * target.height / self.height
        if self.on.root != target.on.root:
            refuse(
                f"coordinates of image {self.on.root.image} mean nothing in image "
                f"{target.on.root.image}; convert between spaces of one picture"
            )
        return target.from_root(*self.to_root(x, y))


class _Pixels(Space):
    @classmethod
    def of_size(cls, size: tuple[int, int], on: View = FIRST_PICTURE) -> Self:
        """From height and width, as `ImageRef.size` and `smart_resize` give them."""
        return cls(width=size[1], height=size[0], on=on)


class SourcePixels(_Pixels):
    """Pixels as they are in the file, as shown (after EXIF rotation): width, then height."""


class ResizedPixels(_Pixels):
    """Pixels of what the model gets, after resizing to whole visual tokens: width, then height."""


@dataclass(frozen=True)
class Relative1000(Space):
    """0 to 1000 from left to right and from top to bottom, whatever the size: Qwen3-VL's text."""

    width: float = field(default=1000, init=False, repr=False)
    height: float = field(default=1000, init=False, repr=False)


@dataclass(frozen=True)
class Relative1(Space):
    """0 to 1 from left to right and from top to bottom, as many datasets write floats."""

    width: float = field(default=1, init=False, repr=False)
    height: float = field(default=1, init=False, repr=False)


def finite(*values: float) -> bool:
    """Whether all values are numbers that a float can hold."""
    try:
        return all(map(math.isfinite, values))
    except OverflowError:  # a whole number beyond what a float holds
        return False


def refuse(message: str) -> NoReturn:
    """Raise the error of geometry that cannot be."""
    raise DataError(message, Reason.BAD_GEOMETRY)
