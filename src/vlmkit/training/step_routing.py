"""How the experts were used over a whole step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlmkit.language.layers import RouterStats
from vlmkit.losses.balancing import LoadBalancing


class StepRouting:
    """Counts the assignments of a step over micro-batches and ranks, and balances by them.

    Args:
        balancing: the loss.
        sum_over_ranks: of the training module.
        device: of the model.
    """

    def __init__(
        self,
        balancing: LoadBalancing,
        sum_over_ranks: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self._balancing, self._sum_over_ranks = balancing, sum_over_ranks
        self._step: RouterStats | None = None
        self.is_complete = False
        self.total = torch.zeros(
            (), dtype=torch.float32, device=device
        )  # the loss so far on this rank, for the log

    def count(self, stats: RouterStats, weight: int) -> None:
        """Add a micro-batch of all ranks; those of weight 0 only keep step with the others."""
        mine = torch.cat([stats.assignments, stats.num_tokens[None]]).detach() * weight
        over_ranks = self._sum_over_ranks(mine)
        added = RouterStats(
            assignments=over_ranks[:-1],
            probability=torch.zeros_like(stats.assignments),
            num_tokens=over_ranks[-1],
        )
        self._step = added if self._step is None else self._step + added

    def loss(self, stats: RouterStats, weight: int) -> Tensor:
        """What a micro-batch adds to the objective."""
        if not self.is_complete:
            self.count(stats, weight)
        assert self._step is not None
        added = self._balancing(stats, self._step)
        self.total += added.detach() * weight
        return self._balancing.coefficient * added
