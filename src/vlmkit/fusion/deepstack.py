"""Tapped encoder blocks added to early decoder layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vlmkit.batch import VisualTokens
from vlmkit.fusion.base import Fusion
from vlmkit.vision.merger import PatchMerger


class DeepStack(Fusion):
    """Adds tapped encoder features at visual tokens (Meng et al. 2024; Qwen3-VL report, DeepStack).

    Each tap has a merger of its own. The sum is neither scaled nor gated, and takes place after the
    receiving layer, so the context does not grow.
    """

    def __init__(
        self,
        tapped_blocks: Sequence[int],
        vision_dim: int,
        hidden_dim: int,
        merge_size: int = 2,
        receiving_layers: Sequence[int] | None = None,
    ) -> None:
        """Build the mergers.

        Args:
            tapped_blocks: encoder blocks to tap, counted from 0.
            vision_dim: width of the encoder.
            hidden_dim: width of the decoder.
            merge_size: side of the window of patches that becomes one visual token.
            receiving_layers: decoder layer for each tap; None takes the first layers in order.

        Raises:
            ValueError: the two lists differ in length, or a layer receives twice.
        """
        super().__init__()
        self.merge_size = merge_size
        self.tapped_blocks = tuple(tapped_blocks)
        self.receiving_layers = tuple(
            range(len(self.tapped_blocks)) if receiving_layers is None else receiving_layers
        )
        if len(self.receiving_layers) != len(self.tapped_blocks):
            raise ValueError(
                f"tapped_blocks {list(self.tapped_blocks)} and receiving_layers "
                f"{list(self.receiving_layers)} must be equally many"
            )
        if len(set(self.receiving_layers)) != len(self.receiving_layers):
            raise ValueError(f"receiving_layers {list(self.receiving_layers)} names a layer twice")
        self.mergers = nn.ModuleList(
            PatchMerger(vision_dim, hidden_dim, merge_size, norm_after_grouping=True)
            for _ in self.tapped_blocks
        )

    def project(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One merger per level: (patches, vision_dim) -> (visual_tokens, dim)."""
        return tuple(merger(level) for merger, level in zip(self.mergers, levels, strict=True))

    def forward(self, hidden: Tensor, layer_idx: int, visual: VisualTokens) -> Tensor:
        """Add the level that belongs to this layer, if any."""
        if layer_idx not in self.receiving_layers:
            return hidden
        added = visual.levels[self.receiving_layers.index(layer_idx)]  # (visual_tokens, dim)
        flat = hidden.flatten(0, 1).index_add(0, visual.index, added.to(hidden.dtype))
        return flat.view_as(hidden)
