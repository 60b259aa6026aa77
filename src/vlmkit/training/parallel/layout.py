"""Along which axes ranks divide the work, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmkit.errors import ConfigError

AXES = ("pipeline", "replicate", "shard", "context", "tensor")
"""Axes of the mesh of all ranks, slowest first: tensor ranks are neighbours, pipeline stages far apart."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the parallel axes. Their product is the number of ranks.

    Attributes:
        pipeline: stages of decoder layers.
        replicate: copies of what is sharded; gradients are averaged over them.
        shard: ranks that share one copy of weights, gradients and moments, each with data of its own.
        context: ranks that share the tokens of each row.
        tensor: ranks that share each matrix.
        expert: ranks that share the experts of a layer. They are ranks of `shard` and `context`, not further
            ones.
        zero: what is divided over `shard` and `context`. 0: nothing; 1: the optimiser; 2: gradients too;
            3: weights too.
    """

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    zero: int = 3

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be.

        Raises:
            ConfigError: names the field.
        """
        for axis in (*AXES, "expert"):
            if (size := getattr(self, axis)) < 1:
                raise ConfigError(f"parallel.{axis} is {size}; 1 does not divide along this axis")
        if self.zero not in range(4):
            raise ConfigError(f"parallel.zero is {self.zero}; it must be 0, 1, 2 or 3")
        if (self.shard * self.context) % self.expert:
            raise ConfigError(
                f"parallel.expert={self.expert} must divide parallel.shard * parallel.context = "
                f"{self.shard * self.context}: ranks that share experts are ranks of these axes"
            )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return math.prod(self.sizes.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each axis of the mesh."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def num_data_ranks(self) -> int:
        """Ranks, or groups of ranks, that train on different samples."""
        return self.replicate * self.shard
