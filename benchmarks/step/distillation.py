"""Forward KL from a teacher's predictions over the full vocabulary: the loss alone, with its gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.step.side import Gradients, Part, Side, fused_adamw
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.losses.divergences import ForwardKL
from vlmkit.losses.linear_distillation import (
    distillation_chunk_for,
    weighted_linear_distillation,
)


class DistillationPart(Part):
    """Hidden states of student and teacher, both heads.

    transformers has no such loss. What trainers on top of it do stands for it here: logits of both at the
    supervised positions only, log-softmax, `kl_div`.
    """

    tolerance = 1e-4

    def __init__(
        self, rows: int, vocab: int, dim: int, teacher_dim: int, temperature: float
    ) -> None:
        """Keep the sizes."""
        self.rows, self.vocab, self.dim, self.teacher_dim = rows, vocab, dim, teacher_dim
        self.temperature = temperature

    def prepare(self, folder: Path) -> None:
        """Nothing: tensors are drawn from a seed."""

    def ours(self, folder: Path, device: torch.device) -> Side:
        """See `Part.ours`."""
        return FusedDistillation(self, device)

    def theirs(self, folder: Path, device: torch.device) -> Side:
        """See `Part.theirs`."""
        return PlainDistillation(self, device)

    def describe(self) -> str:
        """See `Part.describe`."""
        return (
            f"{self.rows} tokens, a vocabulary of {self.vocab}, student of width {self.dim}, "
            f"teacher of width {self.teacher_dim}, temperature {self.temperature}"
        )


class _Distillation(Side):
    def __init__(self, part: DistillationPart, device: torch.device) -> None:
        random = torch.Generator().manual_seed(0)

        def drawn(rows: int, columns: int, scale: float) -> Tensor:
            return (torch.randn(rows, columns, generator=random) * scale).to(device)

        self.temperature = part.temperature
        self.rows = nn.Parameter(drawn(part.rows, part.dim, 1.0))
        self.head = nn.Parameter(drawn(part.vocab, part.dim, 2 * part.dim**-0.5))
        self.teacher_rows = drawn(part.rows, part.teacher_dim, 1.0)
        self.teacher_head = drawn(part.vocab, part.teacher_dim, 2 * part.teacher_dim**-0.5)
        self.optimizer = fused_adamw([self.rows, self.head])

    def gradients(self) -> Gradients:
        assert self.rows.grad is not None
        assert self.head.grad is not None
        return {"rows": self.rows.grad, "head": self.head.grad}

    def flops(self) -> float:
        """See `Side.flops`: both logits, and the gradients of rows and head."""
        return 2 * len(self.rows) * (3 * self.head.numel() + self.teacher_head.numel())


class FusedDistillation(_Distillation):
    """vlmkit's loss."""

    def loss(self) -> Tensor:
        """See `Side.loss`."""
        weights = torch.full((len(self.rows),), 1 / len(self.rows), device=self.rows.device)
        loss, _ = weighted_linear_distillation(
            self.rows,
            self.head,
            self.teacher_rows,
            self.teacher_head,
            weights,
            divergence=ForwardKL(),
            temperature=self.temperature,
            chunk_tokens=distillation_chunk_for(self.rows.device, len(self.head)),
        )
        return loss


class PlainDistillation(_Distillation):
    """Both logits whole."""

    def loss(self) -> Tensor:
        """See `Side.loss`."""
        with torch.no_grad():
            logits = F.linear(self.teacher_rows, self.teacher_head) / self.temperature
            wanted = F.log_softmax(logits, dim=-1)
            del logits
        found = F.log_softmax(F.linear(self.rows, self.head) / self.temperature, dim=-1)
        divergence = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2
