"""Initial values. Constructors fix shapes; `reset_parameters` fills them, so any size builds on meta."""

from __future__ import annotations

import torch
from torch import nn


def init_linear_and_norm_(module: nn.Module, std: float = 0.02) -> None:
    """Fill all linear, embedding and LayerNorm parameters below `module` (published initializer_range).

    Weights are normal with standard deviation `std`, biases zero, norm gains one.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=std)
        elif isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
        bias = getattr(child, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)


def materialize(module: nn.Module, device: torch.device | str) -> None:
    """Give parameters on meta empty storage on `device`, and move the rest there.

    Unlike `to_empty`, buffers computed at construction (rotary frequencies) keep their values.
    """
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device=device)
                child.register_parameter(
                    name, nn.Parameter(empty, requires_grad=parameter.requires_grad)
                )
    module.to(device)
