"""SigLIP over packed pictures and captions: what the vision encoder is trained in before it meets a decoder.

Zhai et al. 2023 (arXiv 2303.15343). Qwen3-VL trains SigLIP-2 on with dynamic resolution and 2D rotary
(report, section on the vision encoder); `vision` is the encoder of `Qwen3VL`, under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.batch import VisionInputs
from vlmkit.language.text_encoder import TextEncoder
from vlmkit.models.pairs import ImageTextPairs
from vlmkit.vision.attention_pool import AttentionPool
from vlmkit.vision.base import VisionEncoder


@dataclass(frozen=True, kw_only=True)
class PairEmbeddings:
    """Unit vectors, in float32."""

    images: Tensor  # (pairs, dim)
    texts: Tensor  # (pairs, dim)


class Temperature(nn.Module):
    """The learned affine map from cosines to logits: exp(log_scale) * cosine + bias.

    Args:
        scale: to start with.
        bias: to start with; strongly negative, since nearly all pairs are.
    """

    def __init__(self, scale: float = 10.0, bias: float = -10.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale is {scale}; it must be positive")
        self._start = math.log(scale), bias
        self.log_scale = nn.Parameter(torch.empty(()))
        self.bias = nn.Parameter(torch.empty(()))

    def reset_parameters(self) -> None:
        """Fill in the starting values."""
        for parameter, value in zip((self.log_scale, self.bias), self._start, strict=True):
            nn.init.constant_(parameter, value)


class ImageTextModel(nn.Module):
    """Two towers that meet in a dot product.

    Attributes:
        components: name patterns of what can be trained or frozen by itself.
    """

    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("vision.*",),
        "pool": ("pool.*",),
        "text": ("text.*",),
        "temperature": ("temperature.*",),
    }

    def __init__(
        self,
        vision: VisionEncoder,
        pool: AttentionPool,
        text: TextEncoder,
        temperature: Temperature,
    ) -> None:
        """Check that the parts fit together and keep them.

        Args:
            vision: patches -> features; the part that is kept afterwards.
            pool: features of a picture -> one vector.
            text: caption -> one vector.
            temperature: cosine -> logit, for the loss.

        Raises:
            ValueError: widths differ; names both.
        """
        super().__init__()
        for what, left, right in (
            ("pool.dim and vision.dim", pool.dim, vision.dim),
            ("text.embed_dim and vision.dim", text.embed_dim, vision.dim),
        ):
            if left != right:
                raise ValueError(f"{what} must be equal, got {left} and {right}")
        self.vision, self.pool, self.text, self.temperature = vision, pool, text, temperature
        self.vocab_size = text.vocab_size

    def reset_parameters(self) -> None:
        """Fill all parameters with initial values."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]

    def blank(self) -> VisionInputs:
        """The picture of a micro-batch without pairs."""
        return VisionInputs.blank(self.vision.patch_dim, getattr(self.vision, "merge_size", 1))

    def forward(self, pairs: ImageTextPairs) -> PairEmbeddings:
        """Embed pictures and captions of a micro-batch."""
        patches = self.vision(pairs.vision).last  # (patches, dim)
        images = self.pool(patches, pairs.pictures, pairs.queries)
        texts = self.text(pairs.captions)
        return PairEmbeddings(
            images=F.normalize(images.float(), dim=-1)[: pairs.num_pairs],
            texts=F.normalize(texts.float(), dim=-1)[: pairs.num_pairs],
        )
