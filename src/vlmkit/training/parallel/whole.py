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

from vlmkit.checkpoint.later_tensor import LaterTensor
from vlmkit.errors import listed


class Divided(LaterTensor):
    """A tensor of which ranks have parts.

    Args:
        own: this rank's part; None: other stages have it.
        shape: of the whole.
        dtype: of the whole.
        stages: group of the ranks with other layers, if there are any.
        stage: rank within that group that has the tensor.
    """

    def __init__(
        self,
        own: DTensor | None,
        shape: Iterable[int],
        dtype: torch.dtype,
        stages: dist.ProcessGroup | None = None,
        stage: int = 0,
    ) -> None:
        super().__init__(shape, dtype)
        self.own, self.stages, self.stage = own, stages, stage

    @torch.no_grad()
    def gather(self) -> Tensor | None:
        """See `LaterTensor.whole`; the first rank writes."""
        keeps = dist.get_rank() == 0
        whole = None if self.own is None else self.own.full_tensor().detach()
        if self.stages is None or self.stage == 0:
            return whole.cpu() if keeps and whole is not None else None
        if keeps:
            buffer = torch.empty(self.shape, dtype=self.dtype, device=_device_of(self.stages))
            dist.recv(buffer, dist.get_global_rank(self.stages, self.stage), group=self.stages)
            return buffer.cpu()
        if whole is not None and dist.get_global_rank(self.stages, 0) == 0:
            dist.send(whole.contiguous(), 0, group=self.stages)
        return None


def divided_state(module: nn.Module) -> dict[str, Any]:
    """State of a module, its divided tensors as `Divided`; the same names on all ranks.

    All ranks must call it where a model has been divided into stages.
    """
    return _described(module.state_dict(), stages_of(module))


def divided_optimizer_state(
    optimizer: Optimizer, stages: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """As `divided_state`, of an optimiser's state.

    Args:
        optimizer: of this rank's parameters.
        stages: group of the ranks with other layers, if there are any.
    """
    state = optimizer.state_dict()
    if stages is None:
        slots_of = {place: _described(slots) for place, slots in state["state"].items()}
        return {**state, "state": slots_of}
    names = _names_by_place(state["param_groups"])
    own = {
        (names[place], slot): value
        for place, values in state["state"].items()
        for slot, value in values.items()
    }
    groups = _merged(_of_all(state["param_groups"], stages))
    places = {name: place for place, name in _names_by_place(groups).items()}
    whole: dict[int, dict[str, Any]] = {}
    for (name, slot), value in _described(own, stages).items():
        whole.setdefault(places[name], {})[slot] = value
    return {**state, "state": whole, "param_groups": groups}


def whole_state(module: nn.Module) -> dict[str, Any]:
    """State of a module with whole tensors, on the host of the first rank; the others get an empty one.

    Tensors are gathered one after the other. All ranks must call it where something is divided.
    """
    state = {
        name: value.whole() if isinstance(value, Divided) else value
        for name, value in divided_state(module).items()
    }
    return state if not dist.is_initialized() or dist.get_rank() == 0 else {}


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


def _described(state: Mapping[Any, Any], stages: dist.ProcessGroup | None = None) -> dict[Any, Any]:
    """With `Divided` in the place of this rank's parts, and what other stages have."""
    if stages is None:
        return {
            name: Divided(value, value.shape, value.dtype) if isinstance(value, DTensor) else value
            for name, value in state.items()
        }
    sizes: dict[Any, Any] = {  # everything else itself, in a list
        name: (value.shape, value.dtype)
        if isinstance(value, DTensor)
        else [value.cpu() if isinstance(value, Tensor) else value]
        for name, value in state.items()
    }
    found: dict[Any, Any] = {}
    for stage, described in enumerate(_of_all(sizes, stages)):
        for name, what in described.items():
            if isinstance(what, list):
                found[name] = what[0]
            elif name not in found:
                own = state.get(name) if stage == dist.get_rank(stages) else None
                shape, dtype = what
                found[name] = Divided(own, shape, dtype, stages, stage)
    return found


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """Where tensors must be that the group exchanges."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


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
