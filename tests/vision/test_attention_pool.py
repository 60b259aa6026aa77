"""SigLIP's pooling head against timm's, weights and all."""

import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.batch import Segments
from vlmkit.vision.attention_pool import AttentionPool

DIM, MLP_DIM, NUM_HEADS = 32, 64, 2


@pytest.fixture
def theirs() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_so400m_patch16_siglip_256", embed_dim=DIM, depth=1, num_heads=NUM_HEADS, mlp_ratio=2.0
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def pool(init) -> AttentionPool:
    head = AttentionPool(
        dim=DIM, mlp_dim=MLP_DIM, num_heads=NUM_HEADS, attention=SDPAAttention(), init=str(init)
    )
    head.reset_parameters()
    return head


@torch.no_grad()
def test_pooling_equals_timm_picture_by_picture(theirs, tmp_path):
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = pool(tmp_path / "model.safetensors")
    lengths = (6, 1, 9, 6)
    patches = torch.randn(sum(lengths), DIM)
    found = ours(patches, Segments.from_lengths(lengths), Segments.from_lengths([1] * 4))
    for vector, piece in zip(found, patches.split(lengths), strict=True):
        expected = theirs.attn_pool(theirs.norm(piece)[None])[0]
        torch.testing.assert_close(vector, expected, rtol=0, atol=2e-6)  # measured 2.4e-7


def test_weights_without_a_head_leave_it_random_and_say_so(theirs, tmp_path, caplog):
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("attn_pool")}
    save_file(weights, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        head = pool(tmp_path / "model.safetensors")
    assert "has no pooling head" in caplog.text
    assert all(parameter.isfinite().all() for parameter in head.parameters())


def test_a_head_that_does_not_fit_is_named(theirs, tmp_path):
    weights = theirs.state_dict()
    del weights["attn_pool.q.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"differs in q\.bias \(None, ours \(32,\)\)"):
        pool(tmp_path / "model.safetensors")
