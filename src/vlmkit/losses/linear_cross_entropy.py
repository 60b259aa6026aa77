"""Head, cross-entropy and z-loss in one pass that makes the gradients too.

[tokens, vocab] never exists: with the 151,936-row vocabulary it would be the largest tensor of the step
by far.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, kw_only=True)
class OnePass:
    """Losses of each row, and the gradients of their weighted sum."""

    nll: Tensor  # (rows,) float32
    z_loss: Tensor  # (rows,) float32: coefficient * logsumexp(logits)^2
    grad_rows: Tensor | None  # (rows, dim)
    grad_head: Tensor | None  # (vocab, dim)


class LinearCrossEntropyKernel(Protocol):
    """Computes sum over rows of weight * (-log p(target) + z_coefficient * logsumexp(logits)^2)."""

    def __call__(
        self,
        rows: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        z_coefficient: float,
        chunk_tokens: int,
        needs_rows: bool,
        needs_head: bool,
    ) -> OnePass:
        """Run without autograd, autocast off.

        Args:
            rows: (rows, dim), one at least.
            head: (vocab, dim), in the dtype of `rows`.
            targets: (rows,) int64.
            weights: (rows,) float32.
            z_coefficient: of the z-loss.
            chunk_tokens: rows whose logits may exist at a time.
            needs_rows: whether the gradient of `rows` is wanted.
            needs_head: whether the gradient of `head` is wanted.
        """
        ...


class TorchKernel:
    """Matrix products and softmax of torch, chunk by chunk; every device, softmax in float32."""

    def __call__(
        self,
        rows: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        z_coefficient: float,
        chunk_tokens: int,
        needs_rows: bool,
        needs_head: bool,
    ) -> OnePass:
        """See `LinearCrossEntropyKernel`."""
        nll = torch.empty(len(rows), device=rows.device, dtype=torch.float32)
        z_loss = torch.zeros_like(nll)
        grad_rows = torch.empty_like(rows) if needs_rows else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if needs_head else None
        # one buffer for all chunks: fresh memory costs the CPU more than the softmax does
        buffer = rows.new_empty(min(chunk_tokens, len(rows)), len(head))
        for start in range(0, len(rows), chunk_tokens):
            piece = slice(start, start + chunk_tokens)
            row, target = rows[piece], targets[piece, None]
            logits = torch.mm(row, head.T, out=buffer[: len(row)]).float()  # (chunk, vocab)
            wanted = logits.gather(1, target)  # (chunk, 1)
            probability, log_z = softmax_(logits)
            nll[piece] = (log_z - wanted).squeeze(1)
            if z_coefficient:
                z_loss[piece] = (z_coefficient * log_z**2).squeeze(1)
            if not (needs_rows or needs_head):
                continue
            grad, weight = probability, weights[piece, None]
            if z_coefficient:
                grad *= 1 + 2 * z_coefficient * log_z
            grad.scatter_add_(1, target, grad.new_full((1, 1), -1.0).expand_as(target))
            grad = grad.to(rows.dtype)
            if grad_rows is not None:
                torch.mm(grad, head, out=grad_rows[piece])
                grad_rows[piece] *= weight
            if grad_head is not None:
                add_product_(grad_head, grad.T, (row * weight).to(row.dtype))
        return OnePass(nll=nll, z_loss=z_loss, grad_rows=grad_rows, grad_head=grad_head)


def softmax_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax in place, (rows, vocab), and logsumexp, (rows, 1).

    The most probable entry gives the logsumexp back: its probability is at least 1 / vocab, so its
    logarithm is as exact as the logits.
    """
    highest = logits.amax(dim=-1, keepdim=True)
    probability = torch.softmax(logits, dim=-1, out=logits)
    # twice `amax` and not once `max` with its place: the CPU takes eight times as long for places
    return probability, highest - probability.amax(dim=-1, keepdim=True).log()


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total` in place, which may be wider than they are."""
    if total.dtype == left.dtype:
        # without a product of the head's size in between; not `addmm_`, which FLOP counters do not know
        torch.addmm(total, left, right, out=total)
    else:
        total += left @ right


def weighted_linear_cross_entropy(
    rows: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    kernel: LinearCrossEntropyKernel,
    z_coefficient: float,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A kernel's one pass as a differentiable sum, under autocast or not.

    Args:
        rows: (rows, dim); there may be none.
        head: (vocab, dim).
        targets: (rows,) int64.
        weights: (rows,) float32.
        kernel: computes losses and gradients.
        z_coefficient: of the z-loss.
        chunk_tokens: rows whose logits may exist at a time.

    Returns:
        The weighted sum of both losses, (); without gradient, the nll of each row, (rows,), and the
        weighted sum of the z-loss alone, (). All float32.
    """
    result: tuple[Tensor, Tensor, Tensor] = _WeightedLinearCrossEntropy.apply(
        rows, head, targets, weights, kernel, z_coefficient, chunk_tokens
    )
    return result


class _WeightedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        kernel: LinearCrossEntropyKernel,
        z_coefficient: float,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else rows.dtype
        needs_rows, needs_head = ctx.needs_input_grad[:2]
        with torch.autocast(device, enabled=False):
            done = _nothing(rows, head, needs_rows, needs_head)
            if len(rows):
                done = kernel(
                    rows.to(dtype),
                    head.to(dtype),
                    targets,
                    weights,
                    z_coefficient=z_coefficient,
                    chunk_tokens=chunk_tokens,
                    needs_rows=needs_rows,
                    needs_head=needs_head,
                )
            z_total = (done.z_loss * weights).sum()
            total = (done.nll * weights).sum() + z_total
        ctx.save_for_backward(
            None if done.grad_rows is None else done.grad_rows.to(rows.dtype),
            None if done.grad_head is None else done.grad_head.to(head.dtype),
        )
        ctx.mark_non_differentiable(done.nll, z_total)
        return total, done.nll, z_total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*scaled_(ctx.saved_tensors, grad_output), None, None, None, None, None)


def scaled_(grads: Iterable[Tensor | None], factor: Tensor) -> Iterator[Tensor | None]:
    """Gradients that a forward pass made and saved, times the loss's own, in place.

    The head's is as large as the head. A second backward pass over the same graph would find them changed:
    autograd notices and refuses.
    """
    return (None if g is None else g.mul_(factor.to(g.dtype)) for g in grads)


def _nothing(rows: Tensor, head: Tensor, needs_rows: bool, needs_head: bool) -> OnePass:
    """Of no rows: no loss, and gradients of exactly zero."""
    return OnePass(
        nll=torch.zeros(0, device=rows.device),
        z_loss=torch.zeros(0, device=rows.device),
        grad_rows=torch.zeros_like(rows) if needs_rows else None,
        grad_head=torch.zeros_like(head) if needs_head else None,
    )
