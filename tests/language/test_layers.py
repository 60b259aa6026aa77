"""The norm's own backward pass against autograd, in float64 and under bfloat16."""

from __future__ import annotations

import pytest
import torch

from vlmkit.language.layers import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_of_a_norm_are_one(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(48).to(dtype)
    norm.weight.data.normal_(1, 0.3)
    x, grad = torch.randn(2, 5, 48, dtype=dtype), torch.randn(2, 5, 48, dtype=dtype)
    found = []
    for fused in (True, False):
        norm.fused = fused
        given = x.clone().requires_grad_()
        norm.weight.grad = None
        out = norm(given)
        out.backward(grad)
        found.append((out.detach(), given.grad, norm.weight.grad))
    tolerance = 2e-6 if dtype == torch.float32 else 4e-2  # measured: 9.5e-7 and 3.1e-2
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        assert theirs is not None
        assert float((ours - theirs).abs().max()) <= tolerance
