"""One implementation doing one case's work, and what both must agree on."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]
"""By the name under which both sides know a parameter."""


def fused_adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of both sides."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad], lr=1e-5, fused=True
    )


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Matrix products in `dtype`; None: all in the parameters' dtype."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Side(ABC):
    """Model, batch and optimiser of one implementation."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Forward pass."""

    @abstractmethod
    def update(self) -> None:
        """Optimiser step; gradients are gone afterwards."""

    @abstractmethod
    def gradients(self) -> Gradients:
        """Of the last backward pass, in the published layout."""

    def flops(self) -> float | None:
        """Of one step by definition; None: not counted."""
        return None

    def step(self) -> None:
        """Forward, backward, optimiser."""
        self.loss().backward()
        self.update()


class Part(ABC):
    """One piece of work that both sides do.

    Attributes:
        tolerance: allowed norm of a gradient's difference, relative to the norm of the gradient.
        precision: of matrix products under autocast; None: that of the parameters.
    """

    tolerance: float
    precision: torch.dtype | None = None

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Write the weights of both."""

    @abstractmethod
    def ours(self, folder: Path, device: torch.device) -> Side:
        """vlmkit with those weights."""

    @abstractmethod
    def theirs(self, folder: Path, device: torch.device) -> Side:
        """transformers with those weights."""

    @abstractmethod
    def describe(self) -> str:
        """What is computed, in words."""


def check(ours: Side, theirs: Side, tolerance: float) -> tuple[float, float]:
    """Make sure that both compute the same.

    Args:
        ours: of vlmkit.
        theirs: of transformers.
        tolerance: see `Part`.

    Returns:
        Relative differences: of the loss, and the worst of a gradient.

    Raises:
        AssertionError: loss or gradients differ.
    """
    losses = []
    for side in (ours, theirs):
        loss = side.loss()
        loss.backward()
        losses.append(float(loss))
    loss_error = abs(losses[0] - losses[1]) / abs(losses[1])
    assert loss_error <= tolerance, f"the losses differ: {losses}"
    error = worst_gradient(ours.gradients(), theirs.gradients())
    assert error <= tolerance, f"gradients differ by {error:.1e}"
    for side in (ours, theirs):
        side.update()  # makes the optimiser's state, too
    gc.collect()
    return loss_error, error


def worst_gradient(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Largest relative difference by norm.

    Gradients that are zero but for rounding, as a key bias's, count in relation to the largest norm.
    """
    assert ours.keys() == theirs.keys(), f"other parameters: {sorted(ours.keys() ^ theirs.keys())}"
    floor = 1e-3 * max(float(gradient.float().norm()) for gradient in theirs.values())
    worst = 0.0
    for name, gradient in theirs.items():
        difference = float((ours[name].float() - gradient.float()).norm())
        worst = max(worst, difference / max(float(gradient.float().norm()), floor))
    return worst
