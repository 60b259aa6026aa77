"""How many processes a layout takes, and who starts them."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from vlmkit.errors import ConfigError
from vlmkit.training.parallel.layout import Layout


def processes_for(
    layout: Layout, devices: int | str = "auto", num_nodes: int = 1
) -> dict[str, Any]:
    """`devices` and `num_nodes` of `lightning.Trainer`.

    torchrun and SLURM say how many processes they have started on how many machines. Without them Lightning
    starts as many on this machine as the layout has ranks; where that is left open, one for each GPU.

    Args:
        layout: which the ranks will have.
        devices: as given by the user; `auto`: to be found here.
        num_nodes: likewise; 1 where a launcher knows better.

    Raises:
        ConfigError: the layout is made for another number of ranks.
    """
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        started = int(os.environ["WORLD_SIZE"])
    elif SLURMEnvironment.detect():
        started = SLURMEnvironment().world_size()
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        local = started // nodes
    else:
        if devices == "auto" and not layout.is_open:
            if layout.world_size % num_nodes:
                raise ConfigError(
                    f"parallel is made for {layout.world_size} ranks, which trainer.num_nodes={num_nodes} "
                    "does not divide"
                )
            devices = layout.world_size // num_nodes
        if isinstance(devices, int) and devices > 0:
            layout.for_ranks(devices * num_nodes)
        return {"devices": devices, "num_nodes": num_nodes}
    found = {"devices": local, "num_nodes": started // local}
    for name, given, unsaid in (("devices", devices, "auto"), ("num_nodes", num_nodes, 1)):
        if given not in (unsaid, found[name]):
            raise ConfigError(
                f"trainer.{name}={given}, but the launcher has started {local} processes on each of "
                f"{found['num_nodes']} machines: leave trainer.{name} out"
            )
    layout.for_ranks(started)
    return found
