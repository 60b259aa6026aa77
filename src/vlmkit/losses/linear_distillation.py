"""Two heads and a divergence between their predictions in one pass that makes the gradients too.

Neither the student's nor the teacher's [tokens, vocab] ever exists. Widths may differ; the vocabulary is
one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlmkit.errors import UserError
from vlmkit.losses.chunks import chunk_tokens_for
from vlmkit.losses.divergences import Divergence
from vlmkit.losses.linear_cross_entropy import add_product_, scaled_

BYTES_PER_LOGIT = 12  # the student's, the teacher's, and one more of their size, all float32


def distillation_chunk_for(device: torch.device, vocab_size: int) -> int:
    """Positions per chunk, by the device's memory; see `vlmkit.losses.chunks`."""
    return chunk_tokens_for(device, vocab_size, BYTES_PER_LOGIT)


def weighted_linear_distillation(
    rows: Tensor,
    head: Tensor,
    teacher_rows: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
    *,
    divergence: Divergence,
    temperature: float = 1.0,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Sum over rows of weight * temperature^2 * divergence(student, teacher), under autocast or not.

    Both logits are divided by the temperature; its square keeps the size of gradients (Hinton et al.
    2015). The teacher gets no gradient.

    Args:
        rows: (rows, dim) of the student, after its final norm; there may be none.
        head: (vocab, dim).
        teacher_rows: (rows, teacher_dim), of the same positions.
        teacher_head: (vocab, teacher_dim).
        weights: (rows,) float32.
        divergence: see `vlmkit.losses.divergences`.
        temperature: above 0; above 1 it shows more of what the teacher finds unlikely.
        chunk_tokens: rows whose logits may exist at a time.

    Returns:
        The sum, (); and without gradient, temperature^2 * divergence of each row, (rows,). Both float32.

    Raises:
        UserError: rows or vocabularies do not match, or the temperature is not positive.
    """
    if len(head) != len(teacher_head):
        raise UserError(
            f"student and teacher must share a vocabulary: their heads have {len(head)} and "
            f"{len(teacher_head)} rows"
        )
    if not len(rows) == len(teacher_rows) == len(weights):
        raise UserError(
            f"student, teacher and weights must be of the same positions: they have {len(rows)}, "
            f"{len(teacher_rows)} and {len(weights)} rows"
        )
    if temperature <= 0:
        raise UserError(f"temperature must be positive, got {temperature}")
    result: tuple[Tensor, Tensor] = _WeightedLinearDistillation.apply(
        rows,
        head,
        teacher_rows.detach(),
        teacher_head.detach(),
        weights,
        divergence,
        temperature,
        chunk_tokens,
    )
    return result


class _WeightedLinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        head: Tensor,
        teacher_rows: Tensor,
        teacher_head: Tensor,
        weights: Tensor,
        divergence: Divergence,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else rows.dtype
        teacher_dtype = dtype if autocast else teacher_rows.dtype
        needs_rows, needs_head = ctx.needs_input_grad[:2]
        row_losses = torch.zeros(len(rows), device=rows.device, dtype=torch.float32)
        grad_rows = torch.empty_like(rows, dtype=dtype) if needs_rows else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if needs_head else None
        with torch.autocast(device, enabled=False):
            student = _Logits(rows.to(dtype), head.to(dtype), temperature, chunk_tokens)
            teacher = _Logits(
                teacher_rows.to(teacher_dtype),
                teacher_head.to(teacher_dtype),
                temperature,
                chunk_tokens,
            )
            scratch = torch.empty_like(student.wide)
            for start in range(0, len(rows), chunk_tokens):
                piece = slice(start, start + chunk_tokens)
                found, wanted = student.of(piece), teacher.of(piece)
                losses = divergence(found, wanted, scratch[: len(found)])
                row_losses[piece] = temperature**2 * losses.squeeze(1)
                grad = found.to(dtype)  # of logits over temperature
                # temperature^2 of the sum, over the temperature within
                weight = temperature * weights[piece, None]
                if grad_rows is not None:
                    torch.mm(grad, student.head, out=grad_rows[piece])
                    grad_rows[piece] *= weight
                if grad_head is not None:
                    add_product_(grad_head, grad.T, (student.rows[piece] * weight).to(dtype))
            total = (row_losses * weights).sum()
        ctx.save_for_backward(
            None if grad_rows is None else grad_rows.to(rows.dtype),
            None if grad_head is None else grad_head.to(head.dtype),
        )
        ctx.mark_non_differentiable(row_losses)
        return total, row_losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*scaled_(ctx.saved_tensors, grad_output), None, None, None, None, None, None)


class _Logits:
    """Logits over temperature of a chunk at a time, float32, in the same memory for all chunks."""

    def __init__(self, rows: Tensor, head: Tensor, temperature: float, chunk_tokens: int) -> None:
        self.rows, self.head, self.temperature = rows, head, temperature
        shape = (min(chunk_tokens, len(rows)), len(head))
        self.wide = rows.new_empty(shape, dtype=torch.float32)
        self.product = self.wide if rows.dtype == torch.float32 else rows.new_empty(shape)

    def of(self, piece: slice) -> Tensor:
        """(chunk, vocab)."""
        rows = self.rows[piece]
        product, wide = self.product[: len(rows)], self.wide[: len(rows)]
        torch.mm(rows, self.head.T, out=product)
        return torch.mul(product, 1 / self.temperature, out=wide)
