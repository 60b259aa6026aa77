"""How far a student's distribution over the vocabulary is from a teacher's, with the gradient by hand."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from vlmkit.losses.linear_cross_entropy import softmax_


class Divergence(Protocol):
    """Divergence of two softmax distributions, and its gradient, row by row and in place."""

    def __call__(self, student: Tensor, teacher: Tensor, scratch: Tensor) -> Tensor:
        """Run without autograd. All three are overwritten; `student` becomes the gradient of its logits.

        Args:
            student: logits divided by the temperature, (rows, vocab) float32.
            teacher: as `student`.
            scratch: memory of the same shape.

        Returns:
            (rows, 1) float32, in nats.
        """
        ...


class ForwardKL:
    """KL(teacher || student): the student covers all that the teacher does (Hinton et al. 2015)."""

    def __call__(self, student: Tensor, teacher: Tensor, scratch: Tensor) -> Tensor:
        """See `Divergence`."""
        ratio = torch.sub(teacher, student, out=scratch)
        p, teacher_log_z = softmax_(teacher)
        q, student_log_z = softmax_(student)
        mean = ratio.mul_(p).sum(1, keepdim=True)
        q.sub_(p)
        return mean + student_log_z - teacher_log_z


class ReverseKL:
    """KL(student || teacher): the student keeps to what the teacher likes (MiniLLM, Gu et al. 2023)."""

    def __call__(self, student: Tensor, teacher: Tensor, scratch: Tensor) -> Tensor:
        """See `Divergence`."""
        ratio = torch.sub(student, teacher, out=scratch)
        _, teacher_log_z = softmax_(teacher)
        q, student_log_z = softmax_(student)
        mean = torch.mul(ratio, q, out=teacher).sum(1, keepdim=True)
        q.mul_(ratio.sub_(mean))
        return mean - student_log_z + teacher_log_z


class JensenShannon:
    """beta * KL(teacher || m) + (1 - beta) * KL(student || m), m = beta * teacher + (1 - beta) * student.

    The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2023). Divided by beta it approaches
    the forward KL for small beta, by 1 - beta the reverse KL for beta near 1.
    """

    def __init__(self, beta: float = 0.5) -> None:
        if not 0 < beta < 1:
            raise ValueError(
                f"beta must lie between 0 and 1, got {beta}; the limits are ForwardKL and ReverseKL"
            )
        self.beta = beta

    def __call__(self, student: Tensor, teacher: Tensor, scratch: Tensor) -> Tensor:
        """See `Divergence`."""
        student -= student.logsumexp(1, keepdim=True)  # log q
        teacher -= teacher.logsumexp(1, keepdim=True)  # log p
        student += math.log1p(-self.beta)
        teacher += math.log(self.beta)
        mixture = torch.logaddexp(student, teacher, out=scratch)
        student -= math.log1p(-self.beta)
        teacher -= math.log(self.beta)
        p = teacher.exp()
        to_teacher = p.mul_(teacher.sub_(mixture)).sum(1, keepdim=True)  # KL(teacher || m)
        ratio = torch.sub(student, mixture, out=scratch)
        q = student.exp_()
        to_student = torch.mul(ratio, q, out=teacher).sum(1, keepdim=True)  # KL(student || m)
        q.mul_(ratio.sub_(to_student)).mul_(1 - self.beta)
        return self.beta * to_teacher + (1 - self.beta) * to_student
