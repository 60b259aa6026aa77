"""Weighted next-token loss; the head is applied to scored positions only, in chunks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmkit.batch import VLMBatch
from vlmkit.losses.base import Loss, LossOutput, TokenScores
from vlmkit.losses.chunks import chunk_tokens_for
from vlmkit.losses.linear_cross_entropy import (
    LinearCrossEntropyKernel,
    TorchKernel,
    weighted_linear_cross_entropy,
)
from vlmkit.losses.units import CountingUnit, PerSample
from vlmkit.losses.weighting import TokenWeighting


class CrossEntropy(Loss):
    """Sum over scored tokens of weight * (-log p(token) + z_coefficient * logsumexp(logits)^2)."""

    def __init__(
        self,
        weighting: TokenWeighting,
        chunk_tokens: int | None = None,
        *,
        unit: CountingUnit | None = None,
        kernel: LinearCrossEntropyKernel | None = None,
        z_coefficient: float = 0.0,
    ) -> None:
        """Keep the parts.

        Args:
            weighting: how much each token counts, given the scored tokens of its unit.
            chunk_tokens: positions whose logits exist at a time; None chooses by the device's memory.
            unit: whose tokens the weighting counts; samples by default.
            kernel: computes losses and gradients; torch's by default.
            z_coefficient: of the z-loss, which keeps logits from drifting (PaLM, section 5: 1e-4).
        """
        super().__init__()
        if chunk_tokens is not None and chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be positive or null, got {chunk_tokens}")
        if z_coefficient < 0:
            raise ValueError(f"z_coefficient must not be negative, got {z_coefficient}")
        self.weighting = weighting
        self.chunk_tokens = chunk_tokens
        self.unit = unit or PerSample()
        self.kernel = kernel or TorchKernel()
        self.z_coefficient = z_coefficient

    def forward(
        self,
        hidden: Tensor,
        head_weight: Tensor,
        batch: VLMBatch,
        weights: Tensor | None = None,
    ) -> LossOutput:
        """See `Loss.forward`.

        Args:
            hidden: (batch, seq, dim), after the final norm.
            head_weight: (vocab, dim).
            batch: holds labels, where they are, and which sample they belong to.
            weights: (scored_tokens,) float32, where samples have scored tokens elsewhere too; None counts
                those of the batch.
        """
        rows, targets = _scored(hidden, batch)
        if weights is None:
            weights = self.weights(batch)
        numerator, nll, z_numerator = weighted_linear_cross_entropy(
            rows,
            head_weight,
            targets,
            weights,
            kernel=self.kernel,
            z_coefficient=self.z_coefficient,
            chunk_tokens=self.chunk_for(head_weight),
        )
        return LossOutput(
            numerator=numerator,
            denominator=weights.sum(),
            token_nll=nll,
            z_numerator=z_numerator if self.z_coefficient else None,
        )

    def denominator(self, batch: VLMBatch) -> Tensor:
        """See `Loss.denominator`."""
        return self.weights(batch).sum()

    def weights(self, batch: VLMBatch) -> Tensor:
        """How much each scored token counts, (scored_tokens,) float32."""
        unit_ids, num_units = self.unit(batch)
        weights: Tensor = self.weighting(unit_ids.flatten()[_scored_index(batch)], num_units)
        return weights

    @torch.no_grad()
    def score(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> TokenScores:
        """See `Loss.score`."""
        rows, targets = _scored(hidden, batch)
        chunk = self.chunk_for(head_weight)
        nll, correct = [], []
        for row, target in zip(rows.split(chunk), targets.split(chunk), strict=True):
            logits = F.linear(row, head_weight).float()
            nll.append(F.cross_entropy(logits, target, reduction="none"))
            correct.append(logits.argmax(-1) == target)
        samples, _ = PerSample()(batch)
        return TokenScores(
            nll=torch.cat(nll),
            correct=torch.cat(correct),
            sample_ids=samples.flatten()[_scored_index(batch)],
        )

    def chunk_for(self, head_weight: Tensor) -> int:
        """Positions whose logits may exist at a time."""
        return self.chunk_tokens or chunk_tokens_for(head_weight.device, len(head_weight))


def _scored_index(batch: VLMBatch) -> Tensor:
    if batch.scored_index is None:
        raise ValueError("the batch has no labels: this one was made for generation")
    return batch.scored_index


def scored_rows(hidden: Tensor, batch: VLMBatch) -> Tensor:
    """(batch, seq, dim) -> those at scored positions, (scored_tokens, dim)."""
    return hidden.flatten(0, 1)[_scored_index(batch)]


def _scored(hidden: Tensor, batch: VLMBatch) -> tuple[Tensor, Tensor]:
    """Hidden rows and targets at scored positions."""
    assert batch.labels is not None
    return scored_rows(hidden, batch), batch.labels.flatten()[_scored_index(batch)]
