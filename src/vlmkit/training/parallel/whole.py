"""Whole tensors of divided ones, and back: what checkpoints hold does not depend on the layout."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from copy import deepcopy as copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from vlmkit.errors import listed


def whole_state(module: nn.Module) -> dict[str, Any]:
    """State of a module with whole tensors, on the host of the first rank; the others get an empty one.

    Tensors are gathered one after the other. All ranks must call it where something is divided.
    """
    return _gathered(module.state_dict(), stages_of(module))


def whole_optimizer_state(
    optimizer: Optimizer, stages: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """As `whole_state`, of an optimiser's state.

    Args:
        optimizer: of this rank's parameters.
        stages: group of the ranks with other layers, if there are any.
    """
    state = optimizer.state_dict()
    if stages is None:
        return {
            **state,
            "state": {place: _gathered(slots) for place, slots in state["state"].items()},
        }
    names = _names_by_place(state["param_groups"])
    slots = {
        (names[place], slot): value
        for place, values in state["state"].items()
        for slot, value in values.items()
    }
    groups = _merged(_of_all(state["param_groups"], stages))
    places = {name: place for place, name in _names_by_place(groups).items()}
    whole: dict[int, dict[str, Any]] = {}
    for (name, slot), value in _gathered(slots, stages).items():
        whole.setdefault(places[name], {})[slot] = value
    return {**state, "state": whole, "param_groups": groups}


@torch.no_grad()
def load_whole(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Give each rank its part of a module's state.

    Raises:
        RuntimeError: names or shapes differ; says which.
    """
    own = module.state_dict()
    elsewhere = _elsewhere(own, stages_of(module))
    if strict and (missing := [name for name in (*own, *elsewhere) if name not in state]):
        raise RuntimeError(f"the state lacks {listed(map(str, missing))}")  # on all stages alike
    parts = {
        name: own_part(value, own[name])
        if isinstance(own.get(name), DTensor) and value.shape == own[name].shape
        else value
        for name, value in state.items()
        if name not in elsewhere
    }
    module.load_state_dict(parts, strict=strict)


def load_whole_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], stages: dist.ProcessGroup | None = None
) -> None:
    """Give each rank its part of an optimiser's state, parameters matched by their names.

    Args:
        optimizer: of this rank's parameters.
        state: of all parameters.
        stages: see `whole_optimizer_state`.
    """
    like = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    elsewhere = _elsewhere(like, stages)
    groups = []
    for group in state["param_groups"]:
        pairs = zip(group["params"], group["param_names"], strict=True)
        if kept := [pair for pair in pairs if pair[1] not in elsewhere]:
            places, kept_names = zip(*kept, strict=True)
            groups.append({**group, "params": list(places), "param_names": list(kept_names)})
    names = _names_by_place(groups)
    parts: dict[Any, dict[str, Any]] = {}
    for place, slots in state["state"].items():
        if place not in names:
            continue
        parameter = like.get(names[place])
        parts[place] = {
            slot: own_part(value, parameter)
            if isinstance(parameter, DTensor)
            and isinstance(value, Tensor)
            and value.shape == parameter.shape
            else copy(value)  # a tensor may be a window on a file
            for slot, value in slots.items()
        }
    optimizer.load_state_dict({**state, "state": parts, "param_groups": groups})


def own_part(whole: Tensor, like: DTensor) -> DTensor:
    """This rank's part of a tensor that is divided as `like`; nothing is exchanged."""
    mesh, placements = like.device_mesh, like.placements
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    index = tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))
    local = whole[index].to(like.to_local().device, copy=True).contiguous()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def stages_of(module: nn.Module) -> dist.ProcessGroup | None:
    """Group of the ranks with the other stages of a model, where it has been divided into stages."""
    groups = (getattr(part, "stage_group", None) for part in module.modules())
    return next((group for group in groups if group is not None), None)


def _gathered(state: Mapping[Any, Any], stages: dist.ProcessGroup | None = None) -> dict[Any, Any]:
    keeps = not dist.is_initialized() or dist.get_rank() == 0
    sends = not keeps and stages is not None and dist.get_global_rank(stages, 0) == 0
    found = {}
    if sends:
        dist.send_object_list([_described(state)], 0, group=stages)
    for name, value in state.items():
        if isinstance(value, DTensor):
            whole = value.full_tensor().detach()
            if sends:
                dist.send(whole.contiguous(), 0, group=stages)
            value = whole.cpu() if keeps else None
            del whole
        if keeps:
            found[name] = value
    if keeps and stages is not None:
        for rank in range(1, dist.get_world_size(stages)):
            found |= _received(dist.get_global_rank(stages, rank), stages)
    return found


def _described(state: Mapping[Any, Any]) -> dict[Any, tuple[torch.Size, torch.dtype] | list[Any]]:
    """Shape and type of divided tensors; everything else itself, in a list."""
    return {
        name: (value.shape, value.dtype)
        if isinstance(value, DTensor)
        else [value.cpu() if isinstance(value, Tensor) else value]
        for name, value in state.items()
    }


def _received(source: int, stages: dist.ProcessGroup) -> dict[Any, Any]:
    """What another stage has gathered, on the host."""
    described: list[Any] = [None]
    dist.recv_object_list(described, source, group=stages)
    is_nccl = dist.get_backend(stages) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")
    found = {}
    for name, what in described[0].items():
        if isinstance(what, list):
            found[name] = what[0]
            continue
        buffer = torch.empty(what[0], dtype=what[1], device=device)
        dist.recv(buffer, source, group=stages)
        found[name] = buffer.cpu()
    return found


def _of_all(value: Any, stages: dist.ProcessGroup) -> list[Any]:
    """The value of each stage."""
    every: list[Any] = [None] * dist.get_world_size(stages)
    dist.all_gather_object(every, value, group=stages)
    return every


def _elsewhere(own: Iterable[Hashable], stages: dist.ProcessGroup | None) -> set[Hashable]:
    """Names that only other stages have; nothing where there are none."""
    names = set(own)
    if stages is None:
        return set()
    return {name for part in _of_all(sorted(map(str, names)), stages) for name in part} - names


def _names_by_place(groups: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Places of parameters -> their names."""
    return {
        place: name
        for group in groups
        for place, name in zip(group["params"], group["param_names"], strict=True)
    }


def _merged(by_stage: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Groups of an optimiser of all parameters: those of one setting are one, as in one process."""
    merged: list[tuple[dict[str, Any], list[str]]] = []
    for group in (group for groups in by_stage for group in groups):
        settings = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        names = next((names for known, names in merged if known == settings), None)
        if names is None:
            merged.append((settings, names := []))
        names += group["param_names"]
    groups = []
    first = 0
    for settings, names in merged:
        places = list(range(first, first + len(names)))
        first += len(names)
        groups.append({**settings, "params": places, "param_names": names})
    return groups
