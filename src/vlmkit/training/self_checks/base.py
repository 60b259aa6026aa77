"""What a check gets, what it returns, and how it works without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from math import isfinite
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from vlmkit.batch import VLMBatch
from vlmkit.data.collate import collate
from vlmkit.data.processor import Example, Processor
from vlmkit.errors import UserError
from vlmkit.losses.base import Loss


class SelfCheckError(UserError):
    """A check has failed; the message names it, the numbers, and what they usually mean."""


class Status(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOTICE = "notice"  # worth reading, no reason to stop
    SKIPPED = "skipped"  # nothing to look at; the detail says why


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check has measured."""

    status: Status
    measured: float | None = None
    tolerance: float | None = None
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether training may go on."""
        return self.status is not Status.FAILED


def within(measured: float, tolerance: float, detail: str) -> CheckResult:
    """Passed where `measured` is not above `tolerance` and both are finite."""
    good = isfinite(measured) and isfinite(tolerance) and measured <= tolerance
    status = Status.PASSED if good else Status.FAILED
    return CheckResult(status=status, measured=measured, tolerance=tolerance, detail=detail)


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """The run as a check sees it.

    Attributes:
        model: as it is trained, without the wrapper of a strategy.
        loss: as it is trained with.
        processor: as it is trained with.
        examples: a few short samples of the run's own data, decoded; their plans are kept.
        packed: the examples in one row, in order, on the host.
        device: of the model.
        precision: context in which the run computes; autocast, say.
        shares_samples: whether each rank computes only a part of each sample, so that what goes into the
            model and comes out of it cannot be looked at here.
        step: optimiser steps taken.
        is_last: no step will follow.
    """

    model: nn.Module
    loss: Loss
    processor: Processor
    examples: tuple[Example, ...]
    packed: VLMBatch
    device: torch.device
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    shares_samples: bool = False
    step: int = 0
    is_last: bool = False

    def alone(self, number: int) -> VLMBatch:
        """One of the examples in a row of its own, on the host."""
        return one_row([self.examples[number]], self.processor)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the model's parameters."""
        return next(self.model.parameters()).dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of matrix products: autocast's, or that of the weights."""
        with self.precision():
            if torch.is_autocast_enabled(self.device.type):
                return torch.get_autocast_dtype(self.device.type)
        return self.weight_dtype

    def at(self, step: int, is_last: bool) -> CheckContext:
        """The same run at another step."""
        return replace(self, step=step, is_last=is_last)

    def generator(self) -> torch.Generator:
        """A source of random numbers on the host that is the check's own; another one in each step."""
        return torch.Generator().manual_seed(self.step)


SHARED = "ranks share samples here: try the model with parallel.tensor, context and pipeline 1"


class SelfCheck(Protocol):
    """One thing that a run relies on, measured.

    A check may compute whatever it likes; `undisturbed` puts back modes and random states around it. It
    must not accumulate into `.grad`: gradients come from `torch.autograd.grad`.

    Attributes:
        meaning: what a failure usually means, for the message.
    """

    meaning: str

    def run(self, context: CheckContext) -> CheckResult:
        """Measure."""
        ...


def one_row(examples: list[Example], processor: Processor) -> VLMBatch:
    """The examples in one packed row, without padding."""
    return collate(
        [examples],
        pad_id=processor.special_tokens.pad_id,
        merge_size=processor.image.merge_size,
    )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and gradients inside; afterwards modes and random states are as before."""
    was_training = [module for module in model.modules() if module.training]
    with ExitStack() as stack:
        stack.enter_context(isolate_rng())
        stack.enter_context(torch.enable_grad())
        for module in was_training:
            module.training = False
        try:
            yield
        finally:
            for module in was_training:
                module.training = True


def token_errors(found: Tensor, expected: Tensor) -> Tensor:
    """Error of each token, relative to the size of a typical one, (tokens,) float64.

    Args:
        found: (tokens, ...).
        expected: as `found`.
    """
    error = (found.detach().double() - expected.detach().double()).flatten(1).norm(dim=1)
    size = expected.detach().double().flatten(1).norm(dim=1).square().mean().sqrt()
    return error / size.clamp(min=1e-30)


def worst_error(found: Tensor, expected: Tensor) -> float:
    """The largest of `token_errors`; infinite where numbers are not finite."""
    worst = float(token_errors(found, expected).max())
    return worst if worst == worst else float("inf")
