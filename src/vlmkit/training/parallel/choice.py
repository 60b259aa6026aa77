"""Layout -> the strategy of Lightning that carries it out."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, Strategy

from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.strategy import Divide, MeshStrategy


def strategy_for(layout: Layout, divide: Divide) -> Strategy | str:
    """Nothing special for one rank; copies for a layout that divides nothing; else a mesh.

    One rank that is asked to shard (zero > 0) becomes a mesh of one rank, so that
    what is tried on a laptop is what runs on a cluster.
    """
    if layout.zero == 0:
        is_single = not layout.is_open and layout.world_size == 1
        return "auto" if is_single else DDPStrategy()
    return MeshStrategy(layout, divide)
