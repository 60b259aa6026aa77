"""How much each scored token counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenWeighting(nn.Module):
    """Weight x ** -power for each of a unit's x scored tokens; a unit is a sample or a response.

    power 0 counts tokens, 1 counts units, 0.5 is the square-root weighting (InternVL2.5's square
    averaging; the Qwen3-VL report names a square-root-normalised loss without a formula).
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        if not 0 <= power <= 1:
            raise ValueError(f"weighting power must lie in 0..1, got {power}")
        self.power = power

    def forward(self, unit_ids: Tensor, num_units: int) -> Tensor:
        """Weights of the scored tokens.

        Args:
            unit_ids: (scored_tokens,) int64, the unit that each belongs to.
            num_units: units of the micro-batch.

        Returns:
            (scored_tokens,) float32.
        """
        ones = torch.ones(len(unit_ids), device=unit_ids.device, dtype=torch.float32)
        counts = torch.zeros(num_units, device=unit_ids.device, dtype=torch.float32).index_add(
            0, unit_ids, ones
        )
        return counts[unit_ids] ** -self.power
