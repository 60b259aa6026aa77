"""Bytes that precision and optimiser hold for each parameter, found by asking them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vlmkit.training.policy import TrainingPolicy


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How numbers are kept.

    Attributes:
        weights: dtype of parameters, gradients and moments.
        autocast: whether matrix products run in bfloat16 all the same.
    """

    weights: torch.dtype
    autocast: bool

    @property
    def weight_bytes(self) -> int:
        """Of one parameter."""
        return self.weights.itemsize

    @property
    def compute(self) -> torch.dtype:
        """Dtype of matrix products."""
        return torch.bfloat16 if self.autocast else self.weights


def moment_bytes(
    model: nn.Module,
    policy: TrainingPolicy,
    make_optimizer: Callable[..., Optimizer],
    dtype: torch.dtype,
) -> dict[str, float]:
    """Bytes of optimiser state per number of each trained parameter.

    The configured optimiser takes one step on parameters of the same names, groups and dimensions that are
    two wide, and what it keeps is counted.

    Args:
        model: frozen as it will be; on any device.
        policy: groups its parameters.
        make_optimizer: of groups.
        dtype: of the parameters.
    """
    small: dict[str, nn.Parameter] = {}
    groups: list[dict[str, Any]] = []
    for group in policy.groups(model):
        pairs = []
        for name, parameter in group["params"]:
            stand_in = nn.Parameter(torch.zeros((2,) * max(parameter.ndim, 1), dtype=dtype))
            stand_in.grad = torch.ones_like(stand_in)
            small[name] = stand_in
            pairs.append((name, stand_in))
        groups.append({**group, "params": pairs})
    optimizer = make_optimizer(groups)
    optimizer.step()
    return {
        name: sum(
            value.numel() * value.element_size()
            for value in optimizer.state[parameter].values()
            if isinstance(value, torch.Tensor) and value.ndim
        )
        / parameter.numel()
        for name, parameter in small.items()
    }
