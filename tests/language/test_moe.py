import pytest
import torch
from torch.nn import functional as F

from vlmkit.language.layers import RouterStats
from vlmkit.language.moe import MixtureOfExperts
from vlmkit.losses.balancing import LoadBalancing


def layer(hidden_dim: int = 16, intermediate_dim: int = 12) -> MixtureOfExperts:
    torch.manual_seed(0)
    moe = MixtureOfExperts(hidden_dim, intermediate_dim, num_experts=6, num_active=3)
    moe.reset_parameters()
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.mul_(20)
    return moe


def by_hand(moe: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """One token and one expert at a time, in float64."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for i, token in enumerate(x.double()):
        probability = (moe.router.weight.double() @ token).softmax(-1)
        weights, experts = probability.topk(moe.num_active)
        for weight, expert in zip(weights / weights.sum(), experts, strict=True):
            gate, up = (token @ moe.experts.gate_up_proj[expert].double()).chunk(2)
            out[i] += weight * ((F.silu(gate) * up) @ moe.experts.down_proj[expert].double())
    return out


@pytest.mark.parametrize(("hidden", "width"), [(16, 12), (10, 12), (16, 9), (7, 5)])
def test_equals_a_loop_over_tokens_and_experts(hidden, width):
    """Also where widths are no multiple of what the kernel wants."""
    moe, x = layer(hidden, width), torch.randn(2, 9, hidden)
    out, _ = moe(x, None)
    # measured 1.4e-6 on values up to 6.7
    assert torch.allclose(out.flatten(0, 1).double(), by_hand(moe, x.flatten(0, 1)), atol=1e-5)


def test_every_parameter_gets_a_gradient_even_from_unused_experts():
    moe = layer()
    out, _ = moe(torch.randn(1, 1, 16), None)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in moe.parameters())


def test_statistics_ignore_padding():
    moe, x = layer(), torch.randn(1, 6, 16)
    padded = torch.cat([x, torch.randn(1, 4, 16)], dim=1)
    mask = torch.tensor([[False] * 6 + [True] * 4])
    _, short = moe(x, None)
    _, long = moe(padded, mask)
    assert torch.equal(short.assignments, long.assignments)
    assert torch.allclose(short.probability, long.probability, atol=1e-6)
    assert float(long.num_tokens) == 6


def test_balancing_loss_bounds():
    experts, active, tokens = 128, 8, 1000.0
    loss = LoadBalancing()
    even = RouterStats(
        assignments=torch.full((experts,), active * tokens / experts),
        probability=torch.full((experts,), tokens / experts),
        num_tokens=torch.tensor(tokens),
    )
    assert float(loss(even, even)) == 8.0
    one_hot = torch.zeros(experts)
    one_hot[:active] = 1
    collapsed = RouterStats(
        assignments=one_hot * tokens,
        probability=one_hot * tokens / active,
        num_tokens=torch.tensor(tokens),
    )
    assert float(loss(collapsed, collapsed)) == 128.0
    assert float(loss(even + even, even + even)) == 8.0
