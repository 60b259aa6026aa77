"""Gradient norm by component, and clipping of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def component_norms(
    components: Mapping[str, Iterable[nn.Parameter]],
    device: torch.device,
    parts: Sequence[dist.ProcessGroup] = (),
) -> dict[str, Tensor]:
    """Norm of the gradient of each component, () float32; sharded parameters count as a whole.

    One reduction for each mesh that parameters are sharded on, since one call cannot mix meshes.

    Args:
        components: parameters of each component; all ranks name the same ones.
        device: of the parameters.
        parts: groups of ranks with other parameters of the same components, as pipeline stages are.
    """
    by_groups: dict[tuple[dist.ProcessGroup, ...], list[list[Tensor]]] = {}
    for number, parameters in enumerate(components.values()):
        for parameter in parameters:
            if (gradient := parameter.grad) is not None:
                lists = by_groups.setdefault(_sharing(gradient), [[] for _ in components])
                lists[number].append(_own(gradient))
    squares = torch.zeros(len(components), dtype=torch.float32, device=device)
    for groups, lists in by_groups.items():
        found = torch.stack([_square(gradients, device) for gradients in lists])
        for group in groups:
            dist.all_reduce(found, group=group)
        squares += found
    for group in parts:
        dist.all_reduce(squares, group=group)
    return dict(zip(components, squares.sqrt(), strict=True))


def clip(components: Mapping[str, Iterable[nn.Parameter]], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients so that their common norm is at most `max_norm`.

    Args:
        components: parameters of each component.
        norm: of all gradients together.
        max_norm: the largest norm; gradients below it stay as they are.
    """
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
    for parameters in components.values():
        for parameter in parameters:
            if parameter.grad is not None:
                _own(parameter.grad).mul_(scale)


def _own(gradient: Tensor) -> Tensor:
    """The part of this rank."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _sharing(gradient: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """Groups whose ranks have a part of the gradient each."""
    if not isinstance(gradient, DTensor):
        return ()
    mesh = gradient.device_mesh
    return tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(gradient.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    )


def _square(gradients: list[Tensor], device: torch.device) -> Tensor:
    """In float32 also where gradients are bfloat16, which has three digits."""
    own = [gradient for gradient in gradients if gradient.numel()]
    if not own:
        return torch.zeros((), dtype=torch.float32, device=device)
    return torch.stack(torch._foreach_norm(own, 2.0, dtype=torch.float32)).square().sum()
