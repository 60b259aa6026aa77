"""Whole tensors of divided ones, and back: what checkpoints hold does not depend on the layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer


def whole_state(module: nn.Module) -> dict[str, Any]:
    """State of a module with whole tensors, on the host of the first rank; the others get an empty one.

    Tensors are gathered one after the other. All ranks must call it where something is divided.
    """
    return _gathered(module.state_dict())


def whole_optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """As `whole_state`, of an optimiser's state."""
    state = optimizer.state_dict()
    return {**state, "state": {place: _gathered(slots) for place, slots in state["state"].items()}}


@torch.no_grad()
def load_whole(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Give each rank its part of a module's state.

    Raises:
        RuntimeError: names or shapes differ; says which.
    """
    own = module.state_dict()
    parts = {
        name: own_part(value, own[name])
        if isinstance(own.get(name), DTensor) and value.shape == own[name].shape
        else value
        for name, value in state.items()
    }
    module.load_state_dict(parts, strict=strict)


def load_whole_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Give each rank its part of an optimiser's state, parameters matched by their names."""
    like = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    names = {
        place: name
        for group in state["param_groups"]
        for place, name in zip(group["params"], group["param_names"], strict=True)
    }
    parts: dict[Any, dict[str, Any]] = {}
    for place, slots in state["state"].items():
        parameter = like.get(names[place])
        parts[place] = {
            slot: own_part(value, parameter)
            if isinstance(parameter, DTensor)
            and isinstance(value, Tensor)
            and value.shape == parameter.shape
            else value
            for slot, value in slots.items()
        }
    optimizer.load_state_dict({**state, "state": parts})


def own_part(whole: Tensor, like: DTensor) -> DTensor:
    """This rank's part of a tensor that is divided as `like`; nothing is exchanged."""
    mesh, placements = like.device_mesh, like.placements
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    index = tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))
    local = whole[index].to(like.to_local().device, copy=True).contiguous()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    keeps = not dist.is_initialized() or dist.get_rank() == 0
    found = {}
    for name, value in state.items():
        if isinstance(value, DTensor):
            whole = value.full_tensor().detach()
            value = whole.cpu() if keeps else None
            del whole
        if keeps:
            found[name] = value
    return found
