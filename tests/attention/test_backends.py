import logging

import pytest
import torch

from vlmkit.attention.auto import AutoAttention
from vlmkit.attention.base import UnsupportedAttentionError
from vlmkit.attention.flash import FlashAttention
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.attention.varlen import VarlenAttention
from vlmkit.batch import Segments

LENGTHS = (5, 1, 5, 7)


def reference(query, key, value, lengths, key_lengths, causal):
    """Float64, one head and one segment at a time."""
    group = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query, dtype=torch.float64)
    q_start = k_start = 0
    for q_len, k_len in zip(lengths, key_lengths, strict=True):
        for head in range(query.shape[1]):
            q = query[q_start : q_start + q_len, head].double()
            k = key[k_start : k_start + k_len, head // group].double()
            v = value[k_start : k_start + k_len, head // group].double()
            scores = q @ k.T / q.shape[-1] ** 0.5
            if causal:
                hidden = torch.ones(q_len, k_len).triu(k_len - q_len + 1).bool()
                scores = scores.masked_fill(hidden, -torch.inf)
            out[q_start : q_start + q_len, head] = scores.softmax(-1) @ v
        q_start, k_start = q_start + q_len, k_start + k_len
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("key_lengths", [LENGTHS, (9, 4, 5, 8)])
def test_sdpa_equals_brute_force(causal, heads, key_lengths):
    torch.manual_seed(0)
    query = torch.randn(sum(LENGTHS), heads[0], 8)
    key, value = torch.randn(2, sum(key_lengths), heads[1], 8)
    out = SDPAAttention()(
        query,
        key,
        value,
        segments=Segments.from_lengths(LENGTHS),
        key_segments=Segments.from_lengths(key_lengths),
        causal=causal,
    )
    expected = reference(query, key, value, LENGTHS, key_lengths, causal)
    # measured 7e-7 on values up to 2.7
    assert torch.allclose(out.double(), expected, atol=2e-6)


def test_no_gradient_across_segments():
    query, key, value = (torch.randn(18, 2, 8, requires_grad=True) for _ in range(3))
    out = SDPAAttention()(query, key, value, segments=Segments.from_lengths(LENGTHS), causal=True)
    for gradient in torch.autograd.grad(out[5:6].sum(), (key, value)):
        assert not gradient[:5].any()
        assert not gradient[6:].any()


@pytest.mark.parametrize("backend", [VarlenAttention])
def test_cuda_backends_refuse_the_cpu(backend):
    query = torch.randn(4, 2, 8)
    with pytest.raises(UnsupportedAttentionError, match="attention=sdpa"):
        backend()(query, query, query, segments=Segments.from_lengths([4]), causal=True)


def test_flash_says_when_it_is_not_installed():
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(UnsupportedAttentionError, match="flash-attn"):
            FlashAttention()


def test_auto_chooses_and_says_so(caplog):
    caplog.set_level(logging.INFO)
    query = torch.randn(4, 2, 8)
    segments = Segments.from_lengths([4])
    auto = AutoAttention()
    out = auto(query, query, query, segments=segments, causal=True)
    assert torch.equal(out, SDPAAttention()(query, query, query, segments=segments, causal=True))
    auto(query, query, query, segments=segments, causal=True)
    assert [record.message for record in caplog.records] == [
        "attention: SDPAAttention for head_dim 8 in float32 on cpu"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [64, 72, 128])
@pytest.mark.parametrize("key_lengths", [LENGTHS, (9, 4, 5, 8)])
def test_varlen_equals_sdpa(causal, head_dim, key_lengths):
    torch.manual_seed(0)
    query = torch.randn(sum(LENGTHS), 4, head_dim, device="cuda", dtype=torch.bfloat16)
    shape = (2, sum(key_lengths), 2, head_dim)
    key, value = torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    boundaries = {
        "segments": Segments.from_lengths(LENGTHS).to("cuda"),
        "key_segments": Segments.from_lengths(key_lengths).to("cuda"),
    }
    fast = VarlenAttention()(query, key, value, **boundaries, causal=causal)
    slow = SDPAAttention()(query, key, value, **boundaries, causal=causal)
    assert torch.allclose(fast, slow, atol=2e-2)
