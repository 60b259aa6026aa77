"""Initial values. Constructors fix shapes; `reset_parameters` fills them, so any size builds on meta."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def init_parameters_(module: nn.Module, std: float = 0.02) -> None:
    """Fill the parameters of all modules below `module` (published initializer_range).

    Linear and embedding weights are normal with standard deviation `std`, their biases zero; any other
    module below that holds parameters fills them by its own `reset_parameters`.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=std)
            if isinstance(child, nn.Linear) and child.bias is not None:
                nn.init.zeros_(child.bias)
        elif child is not module and next(child.parameters(recurse=False), None) is not None:
            reset: Callable[[], None] | None = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()


def materialize(module: nn.Module, device: torch.device | str) -> None:
    """Give parameters and buffers on meta storage on `device`, and move the rest there.

    What has no values yet is filled with NaN (zeros for integers), so that a forgotten one is found by
    `check_filled` instead of starting from whatever the memory held. Buffers computed at construction
    (rotary frequencies) keep their values.
    """
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter.is_meta:
                filled = nn.Parameter(_unset(parameter, device), parameter.requires_grad)
                child.register_parameter(name, filled)
        for name, buffer in child.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(child, name, _unset(buffer, device))
    module.to(device)


def _unset(tensor: Tensor, device: torch.device | str) -> Tensor:
    empty = torch.empty_like(tensor, device=device, requires_grad=False)
    return empty.fill_(torch.nan) if tensor.is_floating_point() else empty.zero_()


def check_filled(module: nn.Module) -> None:
    """Make sure that `reset_parameters` has given every parameter and buffer a value.

    Raises:
        ValueError: names the class and what it leaves unfilled.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.numel() and tensor.flatten()[0].isnan():
            raise ValueError(
                f"{type(module).__name__}.reset_parameters leaves {name} unfilled: parts are built on "
                "meta and get their values there (vlmkit.constant.Constant holds a fixed tensor)"
            )
