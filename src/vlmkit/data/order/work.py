"""How much a sample costs, and how much a row holds: tokens, patches, and pairs that attend to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vlmkit.data.processor import Plan

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of several samples, known from headers; (samples,) each."""

    tokens: Ints
    scored: Ints  # text tokens that the loss counts
    patches: Ints
    patch_pairs: Ints  # of patches that see each other in the encoder: frames squared, summed

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> Self:
        """Sizes of planned samples."""
        return cls(
            tokens=_ints(plan.num_tokens for plan in plans),
            scored=_ints(plan.num_scored for plan in plans),
            patches=_ints(plan.num_patches for plan in plans),
            patch_pairs=_ints(sum(t * (h * w) ** 2 for t, h, w in plan.grids) for plan in plans),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, chosen: slice | Ints | NDArray[np.bool_]) -> Sizes:
        """Some of the samples."""
        return Sizes(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def __add__(self, other: Sizes) -> Sizes:
        """These samples, then those."""
        return Sizes(
            **{
                field.name: np.concatenate([getattr(self, field.name), getattr(other, field.name)])
                for field in fields(self)
            }
        )


def _ints(values: object) -> Ints:
    return np.array(list(values), dtype=np.int64)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Limits:
    """What a row holds at most.

    `patches` bounds the encoder's memory; None: whatever comes with the tokens.
    """

    tokens: int
    patches: int | None = None

    def hold(self, plan: Plan) -> bool:
        """Whether a sample fits into an empty row."""
        return plan.num_tokens <= self.tokens and (
            self.patches is None or plan.num_patches <= self.patches
        )

    def without(self, plan: Plan) -> Limits:
        """What is left for others in a row that holds a sample."""
        patches = None if self.patches is None else self.patches - plan.num_patches
        return Limits(self.tokens - plan.num_tokens, patches)


@dataclass(frozen=True, kw_only=True)
class TransformerWork:
    """Multiplications of the forward pass of a sample, from the sizes of encoder and decoder.

    Attributes:
        hidden_dim: of the decoder.
        num_layers: of the decoder.
        num_heads: of the decoder.
        num_kv_heads: of the decoder.
        head_dim: of the decoder.
        feed_forward_dim: of a dense layer, or of one expert.
        active_experts: that a token visits; 1 for dense layers.
        vision_dim: of the encoder.
        vision_depth: blocks of the encoder.
        merge_size: side of the window of patches that becomes one visual token.
    """

    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feed_forward_dim: int
    vision_dim: int
    vision_depth: int
    active_experts: int = 1
    merge_size: int = 2

    def __call__(self, sizes: Sizes) -> Floats:
        """Work of each sample, (samples,), in multiplications."""
        return self.decoder(sizes) + self.vision(sizes)

    def decoder(self, sizes: Sizes) -> Floats:
        """The part of it that the decoder has."""
        tokens = sizes.tokens.astype(float)
        attention = self.hidden_dim * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_dim * self.feed_forward_dim * self.active_experts
        causal_pairs = (
            tokens**2 * self.num_heads * self.head_dim
        )  # q.k and p.v, half of them masked
        return self.num_layers * (tokens * (attention + feed_forward) + causal_pairs)  # type: ignore[no-any-return]

    def vision(self, sizes: Sizes) -> Floats:
        """The part of it that encoder and mergers have."""
        patches = sizes.patches.astype(float)
        # qkv and projection 4 d², the multilayer perceptron about 8 d²
        encoder = self.vision_depth * (
            patches * 12 * self.vision_dim**2 + 2.0 * sizes.patch_pairs * self.vision_dim
        )
        merged_dim = self.vision_dim * self.merge_size**2
        mergers = 4 * patches / self.merge_size**2 * merged_dim * (merged_dim + self.hidden_dim)
        return encoder + mergers  # type: ignore[no-any-return]
