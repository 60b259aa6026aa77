"""Kernels that are slightly wrong are found; sound ones pass in every precision."""

from dataclasses import replace

import pytest
import torch

from tests.training.self_checks.contexts import PRECISIONS, TALKS, context, run
from tests.training.self_checks.test_packing import Leaky, with_attention
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.language.moe import grouped_matmul
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.weighting import TokenWeighting
from vlmkit.training.self_checks.base import Status
from vlmkit.training.self_checks.kernels import AttentionKernels, GroupedMatmul, LossKernel
from vlmkit.training.self_checks.packing import Isolation, PackedEqualsAlone


class FloatCounts(TokenWeighting):
    """Counts in float32 whatever the default dtype is."""

    def forward(self, sample_ids, num_samples):
        counts = torch.bincount(sample_ids, minlength=num_samples)
        return (counts.double()[sample_ids] ** -self.power).float()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["qwen3vl_tiny", "qwen3vl_tiny_moe"])
def test_sound_kernels_pass(model, precision):
    where = context(f"model={model}", talks=TALKS[2:], precision=precision)
    attention = run(AttentionKernels(), where)
    # worst of 120 draws: 1.8e-6 of 3.8e-6 (float32), 0.027 of 0.084 (bfloat16)
    assert attention.status is Status.PASSED, attention
    assert "AutoAttention" in attention.detail
    grouped = run(GroupedMatmul(), where)
    # worst of 120 draws: 3.3e-7 of 2.1e-6 and 0.0037 of 0.030
    assert grouped.status is (Status.PASSED if "moe" in model else Status.SKIPPED), grouped
    for power in (0.0, 0.5, 1.0):
        loss = run(LossKernel(), where, loss=CrossEntropy(FloatCounts(power), chunk_tokens=128))
        # worst of 120 draws: 1.3e-6 of 6.1e-6 and 0.0095 of 0.058
        assert loss.status is Status.PASSED, (power, loss)


class Scaled(SDPAAttention):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, query, key, value, **rest):
        return super().__call__(query, key, value, **rest) * self.factor


class WrongBackward(SDPAAttention):
    def __call__(self, query, key, value, **rest):
        out = super().__call__(query, key, value, **rest)
        return out + 0.05 * (out - out.detach())


class OneBadToken(SDPAAttention):
    def __call__(self, query, key, value, **rest):
        out = super().__call__(query, key, value, **rest)
        return torch.cat([out[:-1], out[-1:] * 1.2])


@pytest.mark.parametrize("precision", ["float32", "bf16_mixed"])
@pytest.mark.parametrize("backend", [Scaled(1.05), WrongBackward(), OneBadToken(), Leaky()])
def test_a_wrong_attention_kernel_is_found(backend, precision):
    where = with_attention(context(talks=TALKS[2:], precision=precision), backend)
    result = run(AttentionKernels(), where)
    assert not result.passed, result
    assert type(backend).__name__ in result.detail


def test_float32_shows_errors_of_a_hundred_thousandth():
    where = with_attention(context(talks=TALKS[2:]), Scaled(1 + 1e-5))
    assert not run(AttentionKernels(), where).passed


@pytest.mark.parametrize("precision", ["float32", "bf16_mixed"])
def test_a_wrong_grouped_matmul_is_found(precision):
    where = context("model=qwen3vl_tiny_moe", talks=TALKS[2:], precision=precision)

    def off_by_one(x, weight, ends):
        return grouped_matmul(x, weight, (ends + 1).clamp(max=len(x)))

    def imprecise(x, weight, ends):
        return grouped_matmul(x, weight, ends) * 1.05

    for kernel in (off_by_one, imprecise):
        assert not run(GroupedMatmul(kernel=kernel), where).passed


class Changed(CrossEntropy):
    """Cross-entropy with a mistake."""

    def __init__(self, value=1.0, gradient=1.0, denominator=1.0, shift=0):
        super().__init__(FloatCounts(0.5))
        self.value, self.gradient, self.share, self.shift = value, gradient, denominator, shift

    def forward(self, hidden, head_weight, batch):
        if self.shift:
            batch = replace(batch, labels=batch.labels.roll(self.shift, dims=1))
        out = super().forward(hidden, head_weight, batch)
        numerator = out.numerator.detach() * self.value
        numerator = numerator + self.gradient * (out.numerator - out.numerator.detach())
        return replace(out, numerator=numerator, denominator=out.denominator * self.share)

    def denominator(self, batch):
        return super().denominator(batch) * self.share


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "mistake",
    [{"value": 1.02}, {"gradient": 1.02}, {"denominator": 1.02}, {"value": 1.02, "gradient": 1.02},
     {"shift": 1}],
    ids=lambda mistake: "-".join(mistake),
)  # fmt: skip
def test_a_loss_off_by_a_factor_is_found(mistake, precision):
    where = context(talks=TALKS[2:], precision=precision)
    result = run(LossKernel(), where, loss=Changed(**mistake))
    assert not result.passed, result


def test_counts_kept_in_bfloat16_are_found():
    """The default dtype under `precision=bf16_true`: a sum of ones stops at 256."""

    class HalfCounts(TokenWeighting):
        def forward(self, sample_ids, num_samples):
            ones = torch.ones(len(sample_ids))  # the default dtype's
            counts = torch.zeros(num_samples).index_add(0, sample_ids, ones)
            return counts[sample_ids] ** -self.power

    where = context(talks=TALKS[2:], precision="bf16_true")
    result = run(LossKernel(), where, loss=CrossEntropy(HalfCounts(0.5)))
    assert not result.passed  # measured 6.7 % too much, 0.8 % allowed
    assert "denominator" in result.detail


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_kernels_of_the_gpu_pass(head_dim):
    where = context("model=qwen3vl_tiny_moe", f"size.head_dim={head_dim}", talks=TALKS[:2])
    where = replace(
        where,
        model=where.model.to("cuda", torch.bfloat16),
        loss=CrossEntropy(FloatCounts(0.5)),
        device=torch.device("cuda"),
    )
    for check in (
        AttentionKernels(),
        GroupedMatmul(),
        LossKernel(),
        PackedEqualsAlone(),
        Isolation(),
    ):
        result = run(check, where)
        assert result.status is Status.PASSED, (check, result)
