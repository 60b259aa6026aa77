"""One implementation doing one case's work, and what both must agree on."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

MORE_ROUNDING = 1.25
"""vlmkit's distance to float32 in half precision over transformers', at most."""

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
    """Model, batch and optimiser of one implementation.

    Attributes:
        optimizer: of all parameters that `loss` uses.
        precision: of matrix products under autocast; None: that of the parameters.
    """

    optimizer: torch.optim.Optimizer
    precision: torch.dtype | None = None

    @abstractmethod
    def loss(self) -> Tensor:
        """Forward pass."""

    def update(self) -> None:
        """Optimiser step; gradients are gone afterwards."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Without autocast for a while."""
        precision, self.precision = self.precision, None
        try:
            yield
        finally:
            self.precision = precision

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


def check(ours: Side, theirs: Side, part: Part) -> str:
    """Make sure that both compute the same, and let both update once, which makes the optimisers' state.

    Float32 results must be equal within the part's tolerance. In half precision equal mathematics gives
    results as far apart as rounding drives them, so what is compared is the distance of each to
    transformers' float32 result: vlmkit's may be a little larger (`MORE_ROUNDING`), and the tolerance
    bounds it.

    Returns:
        What was found, in words.

    Raises:
        AssertionError: loss or gradients differ.
    """
    if part.precision is None:
        wanted, found = _result(theirs), _result(ours)
        loss, gradient = _apart(found, wanted)
        assert loss <= part.tolerance, f"the losses differ: {found[0]} and {wanted[0]}"
        assert gradient <= part.tolerance, f"gradients differ by {gradient:.1e}"
        said = (
            f"equal: loss to {loss:.1e}, gradients to {gradient:.1e} (allowed {part.tolerance:.0e})"
        )
    else:
        with theirs.in_float32():
            exact = _result(theirs, update=False)
        theirs_loss, allowed = _apart(_result(theirs), exact)
        loss, gradient = _apart(_result(ours), exact)
        limit = min(MORE_ROUNDING * allowed, part.tolerance)
        said = (
            f"distance to float32: vlmkit's loss {loss:.1e}, gradients {gradient:.1e}; "
            f"transformers' {theirs_loss:.1e}, {allowed:.1e} (allowed {limit:.1e})"
        )
        assert loss <= part.tolerance, f"the losses differ; {said}"
        assert gradient <= limit, f"gradients differ; {said}"
    gc.collect()
    return said


def _result(side: Side, update: bool = True) -> tuple[float, Gradients]:
    """Loss and gradients of one step, which is undone unless it updates."""
    loss = side.loss()
    loss.backward()
    gradients = side.gradients()
    if update:
        side.update()
    else:
        side.optimizer.zero_grad()
    return float(loss.detach()), gradients


def _apart(found: tuple[float, Gradients], wanted: tuple[float, Gradients]) -> tuple[float, float]:
    """Relative differences: of the loss, and the worst of a gradient."""
    return abs(found[0] - wanted[0]) / abs(wanted[0]), worst_gradient(found[1], wanted[1])


def worst_gradient(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Largest relative difference by norm.

    Gradients that are zero but for rounding, as a key bias's, count in relation to the largest norm. What a
    batch does not use has none in transformers and one of exactly zero in vlmkit.
    """
    for name in ours.keys() - theirs.keys():
        assert not ours[name].any(), f"{name} has a gradient in vlmkit alone"
    floor = 1e-3 * max(float(gradient.float().norm()) for gradient in theirs.values())
    worst = 0.0
    for name, gradient in theirs.items():
        difference = float((ours[name].float() - gradient.float()).norm())
        worst = max(worst, difference / max(float(gradient.float().norm()), floor))
    return worst
