"""Weighted next-token loss; the head is applied to scored positions only, in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vlmkit.batch import VLMBatch
from vlmkit.losses.base import Loss, LossOutput, TokenScores
from vlmkit.losses.weighting import TokenWeighting


class CrossEntropy(Loss):
    """Sum over scored tokens of weight * -log p(token).

    Args:
        weighting: how much each token counts.
        chunk_tokens: positions whose logits exist at a time; memory is chunk_tokens * vocab floats.
    """

    def __init__(self, weighting: TokenWeighting, chunk_tokens: int = 1024) -> None:
        super().__init__()
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be positive, got {chunk_tokens}")
        self.weighting = weighting
        self.chunk_tokens = chunk_tokens

    def forward(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> LossOutput:
        """See `Loss.forward`."""
        rows, targets, samples = _scored(hidden, batch)
        weights = self.weighting(samples, batch.num_samples)
        numerator, nll = _LinearCrossEntropy.apply(
            rows, head_weight, targets, weights, self.chunk_tokens
        )
        return LossOutput(numerator=numerator, denominator=weights.sum(), token_nll=nll)

    def denominator(self, batch: VLMBatch) -> Tensor:
        """See `Loss.denominator`."""
        index, _, sample_ids = _scored_fields(batch)
        return self.weighting(sample_ids.flatten()[index], batch.num_samples).sum()

    @torch.no_grad()
    def score(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> TokenScores:
        """See `Loss.score`."""
        rows, targets, samples = _scored(hidden, batch)
        nll, correct = [], []
        for row, target in zip(
            rows.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True
        ):
            logits = F.linear(row, head_weight).float()
            nll.append(F.cross_entropy(logits, target, reduction="none"))
            correct.append(logits.argmax(-1) == target)
        return TokenScores(nll=torch.cat(nll), correct=torch.cat(correct), sample_ids=samples)


def _scored_fields(batch: VLMBatch) -> tuple[Tensor, Tensor, Tensor]:
    if batch.scored_index is None or batch.labels is None or batch.sample_ids is None:
        raise ValueError("the batch has no labels: this one was made for generation")
    return batch.scored_index, batch.labels, batch.sample_ids


def _scored(hidden: Tensor, batch: VLMBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden rows, targets and sample ids at scored positions."""
    index, labels, sample_ids = _scored_fields(batch)
    return hidden.flatten(0, 1)[index], labels.flatten()[index], sample_ids.flatten()[index]


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy in one; gradients are made chunk by chunk in the forward pass.

    [tokens, vocab] never exists: with the 151,936-row vocabulary it would be the largest tensor of the
    step by far.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else rows.dtype
        needs_rows, needs_weight = ctx.needs_input_grad[:2]
        grad_rows = torch.empty_like(rows) if needs_rows else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), device=rows.device, dtype=torch.float32)
        nll = torch.empty(len(rows), device=rows.device, dtype=torch.float32)

        with torch.autocast(device, enabled=False):
            head = weight.to(dtype)
            for start in range(0, len(rows), chunk):
                piece = slice(start, start + chunk)
                row, target, scale = rows[piece].to(dtype), targets[piece], token_weights[piece]
                log_p = F.log_softmax((row @ head.T).float(), dim=-1)  # (chunk, vocab)
                nll[piece] = -log_p.gather(1, target[:, None]).squeeze(1)
                total += (nll[piece] * scale).sum()
                if grad_rows is None and grad_weight is None:
                    continue
                grad = log_p.exp_()
                grad.scatter_add_(1, target[:, None], -torch.ones_like(grad[:, :1]))
                grad = (grad * scale[:, None]).to(dtype)
                if grad_rows is not None:
                    grad_rows[piece] = grad @ head
                if grad_weight is not None:
                    grad_weight += grad.T @ row
        ctx.save_for_backward(
            grad_rows, None if grad_weight is None else grad_weight.to(weight.dtype)
        )
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = (None if g is None else g * grad_output.to(g.dtype) for g in ctx.saved_tensors)
        return (*grads, None, None, None)
