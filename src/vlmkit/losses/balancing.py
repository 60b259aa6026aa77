"""Keeps experts evenly used."""

from __future__ import annotations

from torch import Tensor, nn

from vlmkit.language.layers import RouterStats


class LoadBalancing(nn.Module):
    """Switch-style balancing: experts * sum of (share of assignments * mean probability).

    Over all layers at once, over the whole step (all micro-batches and ranks; Qiu et al. 2025, arXiv
    2501.11873, measure why), and without padding. Perfect balance gives the number of active experts.

    Args:
        coefficient: of the loss. That of the VL training is unpublished; 0.001 is the Qwen3 config's.
        exact: count assignments of the whole step before the first backward pass. Where a step has
            several micro-batches this takes another forward pass without gradients. Otherwise shares
            are those counted so far in the step, and the gradient depends a little on how it is cut.
    """

    def __init__(self, coefficient: float = 0.001, exact: bool = True) -> None:
        super().__init__()
        self.coefficient, self.exact = coefficient, exact

    def forward(self, stats: RouterStats, step: RouterStats) -> Tensor:
        """What a micro-batch adds to the loss before its coefficient, () float32.

        Args:
            stats: of the micro-batch, with gradient.
            step: of the whole step; only counts are read.
        """
        tokens = step.num_tokens.clamp(min=1)
        share = step.assignments / tokens  # (experts,), sums to the number of active experts
        return len(share) * (share * stats.probability / tokens).sum()
