"""What the passes of a step minimise, and who may run them in an order of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vlmkit.batch import VLMBatch
from vlmkit.language.layers import RouterStats
from vlmkit.losses.base import Loss, LossOutput
from vlmkit.training.step_routing import StepRouting


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Of a step. Each micro-batch adds a share of it, scaled up for an exchange that averages gradients.

    Attributes:
        loss: of scored tokens.
        denominator: () float32, over all micro-batches and ranks.
        routing: balances experts; None for dense models.
        averaged_over: ranks by whose number gradients are divided.
    """

    loss: Loss
    denominator: Tensor
    routing: StepRouting | None
    averaged_over: int

    def of_loss(self, result: LossOutput, counts: int) -> Tensor:
        """Share of a micro-batch; `counts` is 0 for one that only keeps step with other ranks."""
        return result.numerator / self.denominator * counts * self.averaged_over

    def of_routing(self, stats: RouterStats, counts: int) -> Tensor:
        """Share of what routers did."""
        assert self.routing is not None
        return self.routing.loss(stats, counts) * counts * self.averaged_over


class Passes(Protocol):
    """Runs the forward and backward passes of all micro-batches of a step in an order of its own."""

    def __call__(
        self, micro_batches: Sequence[VLMBatch], most: int, objective: Objective
    ) -> Iterable[tuple[VLMBatch, LossOutput]]:
        """Accumulate the gradient of the objective.

        Args:
            micro_batches: of this rank's samples.
            most: micro-batches of the rank that has most.
            objective: of the step; routing has been counted.

        Returns:
            Losses that this rank has computed, each with its micro-batch.
        """
        ...
