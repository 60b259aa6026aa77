"""Vision enters at the input embedding only."""

from __future__ import annotations

from torch import Tensor

from vlmkit.batch import VisualTokens
from vlmkit.fusion.base import Fusion


class NoFusion(Fusion):
    """The baseline: decoder layers pass hidden states on unchanged."""

    def forward(self, hidden: Tensor, layer_idx: int, visual: VisualTokens) -> Tensor:
        """Return `hidden`."""
        return hidden
