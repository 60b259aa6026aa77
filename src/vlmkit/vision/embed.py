"""What a patch is and where it stands: patch embedding, resampled position table, 2D rotary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.constant import Constant
from vlmkit.position.mrope import Rotary, rotary_frequencies


class PositionTable(nn.Embedding):
    """A learned `side` x `side` table of positions, resampled bilinearly to any grid.

    Equals `F.interpolate(mode="bilinear", align_corners=True)` (CoMP; Qwen3-VL report). Coordinates are
    exact: row r of h rows sits at r * (side - 1) / (h - 1), computed in integers.
    """

    def __init__(self, side: int, dim: int) -> None:
        super().__init__(side * side, dim)
        self.side = side

    def reset_parameters(self) -> None:
        """Normal with standard deviation 1 / sqrt(dim), as SigLIP starts: 0.02 drowns in the patches."""
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def forward(self, coords: Tensor) -> Tensor:
        """Position embedding of each patch.

        Args:
            coords: (patches, 4) int64: row, column, rows, columns.

        Returns:
            (patches, dim), summed in float32 and cast once, as in the reference.
        """
        cell, extent = coords[:, :2] * (self.side - 1), (coords[:, 2:] - 1).clamp(min=1)
        low = cell // extent  # (patches, 2)
        high = (low + 1).clamp(max=self.side - 1)
        far = (
            cell % extent
        ).float() / extent.float()  # (patches, 2), weight of the upper neighbour
        embedding = torch.zeros((), device=coords.device)
        for row, row_weight in ((low[:, 0], 1 - far[:, 0]), (high[:, 0], far[:, 0])):
            for column, column_weight in ((low[:, 1], 1 - far[:, 1]), (high[:, 1], far[:, 1])):
                corner = F.embedding(row * self.side + column, self.weight)
                embedding = embedding + corner * (row_weight * column_weight)[:, None]
        return embedding.to(self.weight.dtype)


class Rotary2D(nn.Module):
    """Rotary angles from a patch's row and column; half the frequencies each, none for time."""

    def __init__(self, head_dim: int, theta: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"2D rotary needs a head_dim divisible by 4, got {head_dim}")
        self.inv_freq = Constant(rotary_frequencies(head_dim // 2, theta))  # (head_dim / 4,)

    @torch.no_grad()
    def forward(self, coords: Tensor) -> Rotary:
        """Cos and sin, each (patches, head_dim) float32.

        Args:
            coords: (patches, 4) int64: row, column, rows, columns.
        """
        angles = (coords[:, :2, None].float() * self.inv_freq()).flatten(
            1
        )  # (patches, head_dim / 2)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()
