"""Whether a model fits, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from vlmkit.device_memory import GIB, free_gib
from vlmkit.errors import UserError

SHARE_USABLE = 0.9  # of free memory; the rest is for activations' peaks and the allocator


class DoesNotFitError(UserError):
    """The training state is larger than the device; the message says what would fit."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Bytes that a run holds whatever the batch: weights, gradients, two Adam moments."""

    num_parameters: int
    num_trained: int
    weight_bytes: int  # of one parameter
    moment_bytes: int
    divided_by: int = 1  # ranks that have a part each

    @property
    def total_gib(self) -> float:
        """All of it that one rank holds, in GiB."""
        per_trained = self.weight_bytes + 2 * self.moment_bytes
        total = self.num_parameters * self.weight_bytes + self.num_trained * per_trained
        return total / self.divided_by / GIB


def count_parameters(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_fits(
    model: nn.Module,
    device: torch.device,
    *,
    bf16_weights: bool,
    smaller: Sequence[str],
    parameters_of: Callable[[str], int],
    divided_by: int = 1,
) -> TrainingState:
    """Refuse a run whose weights, gradients and optimiser state exceed the device's free memory.

    Args:
        model: on meta; what is frozen takes no gradient.
        device: to train on.
        bf16_weights: weights, gradients and moments in bfloat16 instead of float32.
        smaller: other sizes to suggest, by the name of the option.
        parameters_of: number of parameters of such a size.
        divided_by: ranks that hold a part of the state each.

    Returns:
        What the run will hold.

    Raises:
        DoesNotFitError: with the numbers, the sizes that would fit, and the flags to try.
    """
    size = 2 if bf16_weights else 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = TrainingState(
        num_parameters=count_parameters(model),
        num_trained=trained,
        weight_bytes=size,
        moment_bytes=size,
        divided_by=divided_by,
    )
    available = free_gib(device) * SHARE_USABLE
    if state.total_gib <= available:
        return state

    lines = [
        f"this model has {state.num_parameters:,} parameters; weights, gradients and Adam moments in "
        f"{'bfloat16' if bf16_weights else 'float32'} take {state.total_gib:,.1f} GiB before any "
        f"activation, and {device.type} has {available:,.1f} GiB to use. Nothing was allocated.",
    ]
    half = replace(state, weight_bytes=2, moment_bytes=2)
    if not bf16_weights and half.total_gib <= available:
        lines.append(f"  precision=bf16_true  ({half.total_gib:,.1f} GiB, the same model)")
    fitting: list[tuple[int, str]] = []
    for name in smaller:
        count = parameters_of(name)
        for precision, width in (("", 4), (" precision=bf16_true", 2)):
            other = TrainingState(
                num_parameters=count,
                num_trained=count,
                weight_bytes=width,
                moment_bytes=width,
                divided_by=divided_by,
            )
            if other.total_gib <= available:
                fitting.append((count, f"  model={name}{precision}  ({other.total_gib:,.1f} GiB)"))
                break
    lines += [line for _, line in sorted(fitting, reverse=True)[:3]]
    lines.insert(1, "What would fit here:" if lines[1:] else "No size of conf/model fits here.")
    raise DoesNotFitError("\n".join(lines))
