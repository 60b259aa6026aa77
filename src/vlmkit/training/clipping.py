"""Gradient norm by component, and clipping of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def component_norms(components: Mapping[str, Iterable[nn.Parameter]]) -> dict[str, Tensor]:
    """Norm of the gradient of each component, () float32; sharded parameters count as a whole."""
    return {name: _norm(parameters) for name, parameters in components.items()}


def clip(components: Mapping[str, Iterable[nn.Parameter]], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients so that their common norm is at most `max_norm`.

    Args:
        components: parameters of each component.
        norm: of all gradients together.
        max_norm: the largest norm; gradients below it stay as they are.
    """
    for parameters in components.values():
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Over all meshes that the parameters are sharded on: one call cannot mix them."""
    by_mesh: dict[object, list[Tensor]] = {}
    device = torch.device("cpu")
    for parameter in parameters:
        device = parameter.device
        if (gradient := parameter.grad) is not None:
            mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
            by_mesh.setdefault(mesh, []).append(gradient)
    if not by_mesh:
        return torch.zeros((), device=device)
    norms = [
        norm.full_tensor() if isinstance(norm, DTensor) else norm
        for gradients in by_mesh.values()
        # in float32 also where gradients are bfloat16, which has three digits
        for norm in torch._foreach_norm(gradients, 2.0, dtype=torch.float32)
    ]
    return torch.stack(norms).square().sum().sqrt()
