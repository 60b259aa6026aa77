"""What happens to the decoder's hidden states after each layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vlmkit.batch import VisualTokens
from vlmkit.initialization import init_parameters_


class Fusion(nn.Module, ABC):
    """How visual features enter the decoder beyond the input embedding.

    Attributes:
        tapped_blocks: encoder blocks whose outputs are wanted, counted from 0.
        receiving_layers: decoder layers after which features are added, counted from 0.
    """

    tapped_blocks: tuple[int, ...] = ()
    receiving_layers: tuple[int, ...] = ()

    def project(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tapped features, each (patches, vision_dim) -> one (visual_tokens, dim) per level."""
        return levels

    @abstractmethod
    def forward(self, hidden: Tensor, layer_idx: int, visual: VisualTokens) -> Tensor:
        """Return `hidden`, (batch, seq, dim), as it enters layer `layer_idx + 1`."""

    def reset_parameters(self) -> None:
        """Fill the parameters with initial values."""
        init_parameters_(self)
