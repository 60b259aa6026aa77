"""Divergence to a teacher over the full vocabulary, at scored positions only, in chunks."""

from __future__ import annotations

from torch import Tensor, nn

from vlmkit.batch import VLMBatch
from vlmkit.losses.base import LossOutput
from vlmkit.losses.cross_entropy import scored_rows
from vlmkit.losses.divergences import Divergence
from vlmkit.losses.linear_distillation import (
    distillation_chunk_for,
    weighted_linear_distillation,
)
from vlmkit.losses.units import CountingUnit, PerSample
from vlmkit.losses.weighting import TokenWeighting


class Distillation(nn.Module):
    """Sum over scored tokens of weight * temperature^2 * divergence(student, teacher).

    Args:
        weighting: how much each token counts, given the scored tokens of its unit.
        divergence: `ForwardKL`, `ReverseKL` or `JensenShannon`.
        temperature: of both distributions.
        chunk_tokens: positions whose logits exist at a time; None chooses by the device's memory.
        unit: whose tokens the weighting counts; samples by default.
    """

    def __init__(
        self,
        weighting: TokenWeighting,
        divergence: Divergence,
        *,
        temperature: float = 1.0,
        chunk_tokens: int | None = None,
        unit: CountingUnit | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if chunk_tokens is not None and chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be positive or null, got {chunk_tokens}")
        self.weighting, self.divergence, self.temperature = weighting, divergence, temperature
        self.chunk_tokens, self.unit = chunk_tokens, unit or PerSample()

    def forward(
        self,
        hidden: Tensor,
        head_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_head_weight: Tensor,
        batch: VLMBatch,
    ) -> LossOutput:
        """Weighted sum over scored tokens, and the sum of the weights.

        Args:
            hidden: (batch, seq, dim) of the student, after the final norm.
            head_weight: (vocab, dim).
            teacher_hidden: (batch, seq, teacher_dim), of the same tokens; gets no gradient.
            teacher_head_weight: (vocab, teacher_dim).
            batch: says which positions are scored, and which sample they belong to.

        Returns:
            `token_nll` holds each token's divergence times temperature^2.

        Raises:
            UserError: the vocabularies differ.
        """
        rows, teacher_rows = (scored_rows(x, batch) for x in (hidden, teacher_hidden.detach()))
        weights = self.weights(batch)
        numerator, divergence = weighted_linear_distillation(
            rows,
            head_weight,
            teacher_rows,
            teacher_head_weight,
            weights,
            divergence=self.divergence,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens
            or distillation_chunk_for(head_weight.device, len(head_weight)),
        )
        return LossOutput(numerator=numerator, denominator=weights.sum(), token_nll=divergence)

    def denominator(self, batch: VLMBatch) -> Tensor:
        """The sum of the weights alone, () float32."""
        return self.weights(batch).sum()

    def weights(self, batch: VLMBatch) -> Tensor:
        """How much each scored token counts, (scored_tokens,) float32."""
        assert batch.scored_index is not None
        unit_ids, num_units = self.unit(batch)
        weights: Tensor = self.weighting(unit_ids.flatten()[batch.scored_index], num_units)
        return weights
