"""Along which axes ranks divide the work, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from vlmkit.errors import ConfigError
from vlmkit.training.parallel.context_attention import (
    AllGatherAttention,
    ContextAttentionFactory,
)

AXES = ("pipeline", "replicate", "shard", "context", "tensor")
"""Axes of the mesh of all ranks, slowest first: tensor ranks are neighbours, pipeline stages far apart."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the parallel axes. Their product is the number of ranks.

    One of `replicate` and `shard` may be -1: all ranks that the other axes leave (`for_ranks`).

    Attributes:
        pipeline: stages of decoder layers.
        replicate: copies of what is sharded; gradients are averaged over them.
        shard: ranks that share one copy of weights, gradients and moments, each with data of its own.
        context: ranks that share the tokens of each row.
        tensor: ranks that share each matrix.
        expert: ranks that share the experts of a layer. They are ranks of `shard`, `context` and `tensor`,
            not further ones.
        zero: what is divided over `shard` and `context` throughout a step (Rajbhandari et al., arXiv
            1910.02054). 0: nothing, which replicas alone can do; 1: moments, while weights and gradients
            are whole until the optimiser steps; 2: gradients too; 3: weights too, gathered layer by layer.
        virtual_stages: stages of each `pipeline` rank. 1: 1F1B; more are interleaved, which shortens the time
            in which ranks wait for each other.
        context_attention: how `context` ranks attend to each other's tokens.
    """

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    zero: int = 3
    virtual_stages: int = 1
    context_attention: ContextAttentionFactory = field(
        default=AllGatherAttention, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be.

        Raises:
            ConfigError: names the field.
        """
        for axis in (*AXES, "expert", "virtual_stages"):
            may_be_rest = axis in ("replicate", "shard")
            if (size := getattr(self, axis)) < 1 and not (may_be_rest and size == -1):
                also = ", -1 takes all ranks that are left" if may_be_rest else ""
                raise ConfigError(f"parallel.{axis} is {size}; 1 does not divide along it{also}")
        if self.replicate == self.shard == -1:
            raise ConfigError("parallel.replicate and parallel.shard are both -1; give one of them")
        if self.zero not in range(4):
            raise ConfigError(f"parallel.zero is {self.zero}; it must be 0, 1, 2 or 3")
        if self.zero == 0 and (
            divided := [a for a in AXES if a != "replicate" and self.sizes[a] != 1]
        ):
            raise ConfigError(
                f"parallel.zero=0 with parallel.{divided[0]}={self.sizes[divided[0]]}: copies that share "
                "nothing have parallel.replicate alone; take parallel.zero=1, 2 or 3"
            )
        if self.pipeline > 1 and self.context > 1:
            raise ConfigError(
                f"parallel.pipeline={self.pipeline} with parallel.context={self.context}: stages cannot "
                "share tokens; take parallel.context=1, or parallel.pipeline=1"
            )
        if self.is_open:
            return
        if (among := self.shard * self.context * self.tensor) % self.expert:
            raise ConfigError(
                f"parallel.expert={self.expert} must divide parallel.shard * context * tensor = {among}: "
                "ranks that share experts are ranks of these axes"
            )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return math.prod(self.sizes.values())

    @property
    def expert_shard(self) -> int:
        """Ranks that share one copy of the same experts."""
        return self.shard * self.context * self.tensor // self.expert

    @property
    def weight_parts(self) -> int:
        """Into how many parts the training state is divided, where all of it is (zero=3)."""
        whole = self.pipeline * self.tensor
        return whole * self.shard * self.context if self.zero == 3 else whole

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each axis of the mesh."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def is_open(self) -> bool:
        """Whether an axis waits for the number of ranks."""
        return -1 in (self.replicate, self.shard)

    def for_ranks(self, world_size: int) -> Layout:
        """This layout, with the open axis filled.

        Raises:
            ConfigError: it is made for another number of ranks, or the other axes do not divide them.
        """
        sizes = " x ".join(f"{axis}={size}" for axis, size in self.sizes.items() if size != 1)
        if not self.is_open:
            if self.world_size != world_size:
                raise ConfigError(
                    f"parallel: {sizes or 'a single rank'} is made for {self.world_size} ranks, "
                    f"{world_size} were started"
                )
            return self
        others = abs(self.world_size)
        if world_size % others:
            raise ConfigError(
                f"parallel: {sizes} needs a multiple of {others} ranks, {world_size} were started"
            )
        axis = "shard" if self.shard == -1 else "replicate"
        return replace(self, **{axis: world_size // others})  # type: ignore[arg-type]

    @property
    def num_data_ranks(self) -> int:
        """Ranks, or groups of ranks, that train on different samples."""
        return self.replicate * self.shard
