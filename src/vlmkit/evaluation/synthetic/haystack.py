"""Where a needle lies, and what the haystacks of pictures and videos share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.generated import Rng


class Cell(NamedTuple):
    """A place of the grid.

    Attributes:
        length: of the context.
        depth: of the needle, 0 for the beginning and 1 for the end.
    """

    length: int
    depth: float

    @property
    def categories(self) -> dict[str, str]:
        """For tables."""
        return {"length": str(self.length), "depth": f"{self.depth:.0%}"}


def cell_of(index: int, lengths: Sequence[int], depths: Sequence[float]) -> Cell:
    """Each cell in turn, so that all are asked about equally often."""
    row, column = divmod(index % (len(lengths) * len(depths)), len(depths))
    return Cell(lengths[row], depths[column])


def marked_places(rng: Rng, cell: Cell, count: int, most: int) -> list[int]:
    """Places among `count`: the needle's, then those of at most `most` distractors."""
    needle = round(cell.depth * (count - 1))
    others = [place for place in rng.permutation(count).tolist() if place != needle]
    return [needle, *others[:most]]


def check_grid(lengths: Sequence[int], depths: Sequence[float], distractors: int) -> None:
    """Refuse a grid without cells.

    Raises:
        ConfigError: names the field.
    """
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"lengths are {list(lengths)}; each must be positive")
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise ConfigError(f"depths are {list(depths)}; each must lie between 0 and 1")
    if distractors < 0:
        raise ConfigError(f"distractors is {distractors}; it must not be negative")
