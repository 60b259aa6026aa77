"""What a vision encoder offers to the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vlmkit.batch import VisionInputs
from vlmkit.initialization import init_parameters_


@dataclass(frozen=True, kw_only=True)
class VisionFeatures:
    """Output of the encoder, before merging."""

    last: Tensor  # (patches, vision_dim), output of the last block
    levels: tuple[Tensor, ...]  # each (patches, vision_dim), outputs of the tapped blocks, in order


class VisionEncoder(nn.Module, ABC):
    """Patches of images and video frames -> features, and the blocks that a fusion asked for.

    Attributes:
        dim: width of the features.
        depth: number of blocks that can be tapped.
        patch_dim: numbers in one flattened patch, channels * time * height * width.
    """

    dim: int
    depth: int
    patch_dim: int

    @abstractmethod
    def forward(self, vision: VisionInputs, tapped_blocks: Sequence[int] = ()) -> VisionFeatures:
        """Encode all patches of a micro-batch in one call.

        Args:
            vision: patches with their grids; the frames of a video count as separate pictures.
            tapped_blocks: blocks, counted from 0, whose outputs are returned as `levels`.
        """

    def reset_parameters(self) -> None:
        """Fill the parameters with initial values."""
        init_parameters_(self)
