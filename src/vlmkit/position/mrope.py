"""Rotary embedding over three axes: ids and an axis per frequency -> cos and sin, and applying them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlmkit.constant import Constant

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each (..., head_dim)."""


def rotary_frequencies(dim: int, theta: float) -> Tensor:
    """theta ** (-2i / dim) for i in 0 .. dim / 2 - 1, in float32 on the host.

    float32 throughout, as in the reference: at position 2e5 one unit in the last place is a visible
    angle.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return 1.0 / (theta**exponent)


class FrequencyScaling(Protocol):
    """A way to stretch rotary frequencies over a longer context."""

    def __call__(self, inv_freq: Tensor, theta: float) -> tuple[Tensor, float]:
        """Return the scaled frequencies, (head_dim / 2,), and the factor on cos and sin."""
        ...


class YaRN:
    """YaRN (Peng et al. 2023): slow frequencies are divided by `factor`, fast ones kept.

    Qwen3-VL reaches 1M tokens with factor 3 over 262,144 positions.
    """

    def __init__(
        self,
        factor: float,
        original_max_positions: int = 262_144,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
    ) -> None:
        if factor < 1:
            raise ValueError(f"YaRN factor must be at least 1, got {factor}")
        self.factor = factor
        self.original_max_positions = original_max_positions
        self.beta_fast = beta_fast
        self.beta_slow = beta_slow

    def ramp_bounds(self, head_dim: int, theta: float) -> tuple[int, int]:
        """Frequency indices between which the blend from kept to divided runs."""

        def index_of(rotations: float) -> float:
            wavelengths = self.original_max_positions / (rotations * 2 * math.pi)
            return head_dim * math.log(wavelengths) / (2 * math.log(theta))

        low = max(math.floor(index_of(self.beta_fast)), 0)
        high = min(math.ceil(index_of(self.beta_slow)), head_dim - 1)
        return low, high

    def __call__(self, inv_freq: Tensor, theta: float) -> tuple[Tensor, float]:
        """Blend kept and divided frequencies; see `FrequencyScaling`."""
        low, high = self.ramp_bounds(2 * len(inv_freq), theta)
        index = torch.arange(len(inv_freq), dtype=torch.float32, device=inv_freq.device)
        divided = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
        scaled = inv_freq / self.factor * divided + inv_freq * (1 - divided)
        return scaled, 0.1 * math.log(self.factor) + 1.0


class MRoPE(nn.Module):
    """Multimodal rotary embedding (Qwen2-VL; the interleaved layout is Qwen3-VL's).

    The position scheme is the vector `axes`: one entry per frequency says whether its angle follows
    the time, height or width id. For text all three ids are equal and this is ordinary RoPE.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        axes: Sequence[int],
        scaling: FrequencyScaling | None = None,
    ) -> None:
        super().__init__()
        if len(axes) != head_dim // 2:
            raise ValueError(
                f"the axis layout names {len(axes)} frequencies, "
                f"head_dim {head_dim} has {head_dim // 2}: mrope section must sum to head_dim / 2"
            )
        self.head_dim = head_dim
        self.theta = theta
        self.axes = tuple(axes)
        self.scaling = scaling
        frequencies = rotary_frequencies(head_dim, theta)
        self.attention_factor = 1.0
        if scaling is not None:
            frequencies, self.attention_factor = scaling(frequencies, theta)
        self.inv_freq = Constant(frequencies)
        self.axis_index = Constant(torch.tensor(self.axes, device="cpu"))

    def reset_parameters(self) -> None:
        """Nothing is learned here."""

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> Rotary:
        """Angles of each token.

        Args:
            position_ids: (3, batch, seq) int64.
            dtype: of the result; angles are computed in float32 whatever autocast says.

        Returns:
            cos and sin, each (batch, seq, head_dim).
        """
        followed = position_ids[self.axis_index()]  # (head_dim / 2, batch, seq)
        angles = followed.permute(1, 2, 0).float() * self.inv_freq()  # (batch, seq, head_dim / 2)
        angles = torch.cat([angles, angles], dim=-1)
        factor = self.attention_factor
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pairs (i, i + head_dim / 2) of each head.

    Args:
        x: (..., heads, head_dim).
        rotary: cos and sin, each (..., head_dim).
    """
    cos, sin = (part.unsqueeze(-2) for part in rotary)
    rotated: Tensor = _Rotate.apply(x, cos, sin)
    return rotated


class _Rotate(torch.autograd.Function):
    """Forward and backward each in three passes over one new tensor; autograd's own way takes seven."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        lower, upper = sin.chunk(2, dim=-1)
        return _turned(x, cos, -lower, upper)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        lower, upper = sin.chunk(2, dim=-1)
        return _turned(grad, cos, upper, -lower).to(ctx.dtype), None, None


def _turned(x: Tensor, cos: Tensor, to_first: Tensor, to_second: Tensor) -> Tensor:
    """x * cos, and to each half the other half times a factor."""
    first, second = x.chunk(2, dim=-1)
    out = x * cos
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.addcmul_(second, to_first)
    out_second.addcmul_(first, to_second)
    return out
