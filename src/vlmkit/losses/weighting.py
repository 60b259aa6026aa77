"""How much each scored token counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenWeighting(nn.Module):
    """Weight x ** -power for each of a sample's x scored tokens.

    power 0 counts tokens, 1 counts samples, 0.5 is the square-root weighting (InternVL2.5's square
    averaging; the Qwen3-VL report names a square-root-normalised loss without a formula).
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        if not 0 <= power <= 1:
            raise ValueError(f"weighting power must lie in 0..1, got {power}")
        self.power = power

    def forward(self, sample_ids: Tensor, num_samples: int) -> Tensor:
        """Weights of the scored tokens.

        Args:
            sample_ids: (scored_tokens,) int64, the sample that each belongs to.
            num_samples: samples of the micro-batch.

        Returns:
            (scored_tokens,) float32.
        """
        ones = torch.ones(len(sample_ids), device=sample_ids.device)
        counts = torch.zeros(num_samples, device=sample_ids.device).index_add(0, sample_ids, ones)
        return counts[sample_ids] ** -self.power
