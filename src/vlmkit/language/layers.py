"""RMSNorm, and the feed-forward interface with its dense implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in float32, cast back, then the gain (order matters in bf16).

    Attributes:
        fused: whether it has a backward pass of its own. False leaves it to autograd, which knows how to sum
            the gradient of the gain where tokens or heads are divided over ranks as DTensors.
    """

    fused: bool = True

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        if self.fused:
            normed: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
            return normed
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and a number per row; autograd's own way keeps three tensors, in thrice the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        wide = grad.float()
        normed = x.float() * scale
        product = wide * normed
        grad_weight = product.sum(tuple(range(x.ndim - 1)))
        mean = (product @ weight.float()).unsqueeze(-1) / x.shape[-1]
        grad_x = (wide * weight).addcmul_(normed, mean, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


@dataclass(frozen=True, kw_only=True)
class RouterStats:
    """What a mixture-of-experts layer did, in sums, so that layers and micro-batches add up."""

    assignments: Tensor  # (experts,) float32, how many tokens each expert received
    probability: Tensor  # (experts,) float32, sum over tokens of the router's probability
    num_tokens: Tensor  # () float32, tokens that were not padding

    def __add__(self, other: RouterStats) -> RouterStats:
        return RouterStats(
            assignments=self.assignments + other.assignments,
            probability=self.probability + other.probability,
            num_tokens=self.num_tokens + other.num_tokens,
        )


class FeedForward(nn.Module, ABC):
    """The half of a decoder layer that works on each token alone."""

    @abstractmethod
    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, RouterStats | None]:
        """Map (batch, seq, dim) -> the same shape, with routing statistics where there is a router.

        Args:
            x: hidden states.
            padding_mask: (batch, seq) bool, True on padding; padding must not count in statistics.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Fill the parameters with initial values."""


class SwiGLU(FeedForward):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_dim, intermediate_dim, bias=False)
        self.up_proj = nn.Linear(hidden_dim, intermediate_dim, bias=False)
        self.down_proj = nn.Linear(intermediate_dim, hidden_dim, bias=False)

    def reset_parameters(self) -> None:
        """Normal with standard deviation 0.02."""
        for linear in (self.gate_proj, self.up_proj, self.down_proj):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, None]:
        """See `FeedForward.forward`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), None
