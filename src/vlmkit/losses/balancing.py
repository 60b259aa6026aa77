"""Keeps experts evenly used."""

from __future__ import annotations

from torch import Tensor, nn

from vlmkit.language.layers import RouterStats


class LoadBalancing(nn.Module):
    """Switch-style balancing: experts * sum of (share of assignments * mean probability).

    Over all layers at once and without padding. Perfect balance gives the number of active experts.
    The coefficient of the VL training is unpublished; 0.001 is the Qwen3 config's.
    """

    def __init__(self, coefficient: float = 0.001) -> None:
        super().__init__()
        self.coefficient = coefficient

    def forward(self, stats: RouterStats) -> Tensor:
        """The loss before its coefficient, () float32."""
        tokens = stats.num_tokens.clamp(min=1)
        share = stats.assignments / tokens  # (experts,), sums to the number of active experts
        return len(share) * (share * stats.probability / tokens).sum()
