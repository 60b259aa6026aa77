"""Router and experts (Qwen3 mixture of experts)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.language.layers import FeedForward, RouterStats


class Experts(nn.Module):
    """SwiGLU experts as stacked tensors: one grouped matmul, no loop over experts.

    The tensors have the layout of the published checkpoints: `gate_up_proj` (experts, hidden,
    2 * intermediate), gate first; `down_proj` (experts, intermediate, hidden).
    """

    def __init__(self, hidden_dim: int, intermediate_dim: int, num_experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, hidden_dim, 2 * intermediate_dim))
        self.down_proj = nn.Parameter(torch.empty(num_experts, intermediate_dim, hidden_dim))

    def reset_parameters(self) -> None:
        """Normal with standard deviation 0.02."""
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=0.02)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Each row through its expert.

        Args:
            rows: (rows, dim), those of one expert next to each other.
            counts: (experts,) int32, rows of each expert. They stay on the device: nothing waits for them.

        Returns:
            (rows, dim).
        """
        return grouped_swiglu(rows, self.gate_up_proj, self.down_proj, counts)


class MixtureOfExperts(FeedForward):
    """Top-k routed experts.

    Softmax over all experts in float32, top-k, renormalised, cast to the model's dtype. No shared
    expert, no capacity limit, no token is dropped.
    """

    def __init__(
        self, hidden_dim: int, intermediate_dim: int, num_experts: int, num_active: int
    ) -> None:
        """Build the layer.

        Args:
            hidden_dim: decoder width.
            intermediate_dim: hidden width of one expert.
            num_experts: experts to choose from.
            num_active: experts that each token visits.

        Raises:
            ValueError: more active experts than there are.
        """
        super().__init__()
        if not 1 <= num_active <= num_experts:
            raise ValueError(f"num_active {num_active} must lie in 1..num_experts {num_experts}")
        self.num_experts, self.num_active = num_experts, num_active
        self.router = nn.Linear(hidden_dim, num_experts, bias=False)
        self.experts = Experts(hidden_dim, intermediate_dim, num_experts)

    def reset_parameters(self) -> None:
        """Normal with standard deviation 0.02."""
        nn.init.normal_(self.router.weight, std=0.02)
        self.experts.reset_parameters()

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, RouterStats]:
        """See `FeedForward.forward`."""
        tokens = x.flatten(0, 1)  # (tokens, dim)
        probability = F.softmax(
            self.router(tokens), dim=-1, dtype=torch.float32
        )  # (tokens, experts)
        weights, experts = probability.topk(self.num_active, dim=-1)  # (tokens, active)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = self._run_experts(tokens, weights, experts)
        return out.view_as(x), self._statistics(probability, experts, padding_mask)

    def _run_experts(self, tokens: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        order = experts.flatten().argsort(stable=True)  # (tokens * active,) grouped by expert
        source = order // self.num_active
        counts = torch.zeros(self.num_experts, dtype=torch.int32, device=tokens.device)
        counts = counts.index_add(0, experts.flatten(), torch.ones_like(order, dtype=torch.int32))

        device = tokens.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else tokens.dtype
        result = self.experts(tokens.to(dtype)[source], counts)  # (tokens * active, dim)
        result = result * weights.flatten()[order, None]
        return torch.zeros_like(tokens).index_add(0, source, result.to(tokens.dtype))

    def _statistics(
        self, probability: Tensor, experts: Tensor, padding_mask: Tensor | None
    ) -> RouterStats:
        real = probability.new_ones(len(probability))
        if padding_mask is not None:
            real = (~padding_mask).flatten().to(probability.dtype)
        assignments = probability.new_zeros(self.num_experts).index_add(
            0, experts.flatten(), real.repeat_interleave(self.num_active)
        )
        return RouterStats(
            assignments=assignments, probability=real @ probability, num_tokens=real.sum()
        )


def grouped_swiglu(rows: Tensor, gate_up: Tensor, down: Tensor, counts: Tensor) -> Tensor:
    """Each group of rows through its own SwiGLU, in the dtype of the rows.

    Args:
        rows: (rows, dim), those of one group next to each other.
        gate_up: (groups, dim, 2 * intermediate), gate first.
        down: (groups, intermediate, dim).
        counts: (groups,) int32, rows of each group.
    """
    ends = counts.cumsum(0, dtype=torch.int32)
    gate, up = grouped_matmul(rows, gate_up.to(rows.dtype), ends).chunk(2, dim=-1)
    return grouped_matmul(F.silu(gate) * up, down.to(rows.dtype), ends)


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each group of rows times its own matrix.

    Args:
        x: (rows, k), rows of one group next to each other.
        weight: (groups, k, n).
        ends: (groups,) int32, the row after each group's last.

    Returns:
        (rows, n). Widths that are no multiple of 16 bytes are padded for the kernel.
    """
    k, n = weight.shape[-2:]
    unit = 16 // x.element_size()
    if k % unit or n % unit:
        x = F.pad(x, (0, -k % unit))
        weight = F.pad(weight, (0, -n % unit, 0, -k % unit))
    return F.grouped_mm(x.contiguous(), weight, offs=ends)[:, :n]
