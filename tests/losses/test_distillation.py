import pytest
import torch
from torch.nn import functional as F

from tests.losses.test_cross_entropy import pack
from vlmkit.errors import UserError
from vlmkit.losses.distillation import Distillation
from vlmkit.losses.divergences import ForwardKL, JensenShannon, ReverseKL
from vlmkit.losses.linear_distillation import weighted_linear_distillation
from vlmkit.losses.weighting import TokenWeighting

ROWS, DIM, TEACHER_DIM, VOCAB = 23, 12, 20, 97


def kl(p, q):
    """KL(p || q) of log-probabilities, by row."""
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def plain_forward(student, teacher):
    return kl(teacher, student)


def plain_reverse(student, teacher):
    return kl(student, teacher)


def plain_jensen_shannon(beta):
    def divergence(student, teacher):
        mixture = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
        return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)

    return divergence


DIVERGENCES = [
    pytest.param(ForwardKL(), plain_forward, id="forward"),
    pytest.param(ReverseKL(), plain_reverse, id="reverse"),
    pytest.param(JensenShannon(0.5), plain_jensen_shannon(0.5), id="jensen-shannon"),
    pytest.param(JensenShannon(0.1), plain_jensen_shannon(0.1), id="jensen-shannon-0.1"),
]


def tensors(dtype=torch.float32):
    random = torch.Generator().manual_seed(0)

    def drawn(rows, columns, scale):
        return (torch.randn(rows, columns, generator=random) * scale).to(dtype)

    return (
        drawn(ROWS, DIM, 1.0).requires_grad_(),
        drawn(VOCAB, DIM, 0.6).requires_grad_(),
        drawn(ROWS, TEACHER_DIM, 1.0),
        drawn(VOCAB, TEACHER_DIM, 0.5),
        torch.rand(ROWS, generator=random),
    )


def reference(divergence, inputs, temperature):
    """All logits at once, in float64."""
    rows, head, teacher_rows, teacher_head, weights = (
        x.detach().double().requires_grad_(x.requires_grad) for x in inputs
    )
    found = F.log_softmax(rows @ head.T / temperature, dim=-1)
    wanted = F.log_softmax(teacher_rows @ teacher_head.T / temperature, dim=-1)
    losses = temperature**2 * divergence(found, wanted)
    total = (losses * weights).sum()
    return total.detach(), losses.detach(), torch.autograd.grad(total, (rows, head))


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("ours", "plain"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("chunk", [5, 1000])
def test_value_and_gradients_equal_float64(ours, plain, temperature, chunk):
    inputs = tensors()
    total, losses = weighted_linear_distillation(
        *inputs, divergence=ours, temperature=temperature, chunk_tokens=chunk
    )
    gradients = torch.autograd.grad(3 * total, inputs[:2])
    wanted_total, wanted_losses, wanted_gradients = reference(plain, inputs, temperature)
    assert relative(total.detach(), wanted_total) < 2e-6  # measured 1.5e-7
    assert relative(losses, wanted_losses) < 5e-6  # measured 6.5e-7
    for gradient, wanted in zip(gradients, wanted_gradients, strict=True):
        assert relative(gradient, 3 * wanted) < 5e-6  # measured 1.2e-6


@pytest.mark.parametrize(("ours", "plain"), DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_keeps_dtypes_and_size(ours, plain, dtype):
    """Under autocast, or in bfloat16 throughout."""
    inputs = tensors(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        total, _ = weighted_linear_distillation(*inputs, divergence=ours, chunk_tokens=7)
    gradients = torch.autograd.grad(total, inputs[:2])
    wanted_total, _, wanted_gradients = reference(plain, inputs, 1.0)
    assert total.dtype == torch.float32
    assert relative(total.detach(), wanted_total) < 0.02  # measured 7e-4
    for x, gradient, wanted in zip(inputs, gradients, wanted_gradients, strict=False):
        assert gradient.dtype == x.dtype
        assert relative(gradient, wanted) < 0.03  # measured 0.009


@pytest.mark.parametrize(("ours", "plain"), DIVERGENCES)
def test_a_student_that_equals_its_teacher_learns_nothing(ours, plain):
    rows, head, _, _, weights = tensors()
    total, losses = weighted_linear_distillation(
        rows, head, rows, head, weights, divergence=ours, temperature=2.0, chunk_tokens=8
    )
    gradients = torch.autograd.grad(total, (rows, head))
    assert losses.abs().max() < 1e-6  # measured 2e-8
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)


def test_a_divergence_lies_between_its_limits():
    rows, head, teacher_rows, teacher_head, weights = tensors()
    inputs = (rows, head * 0.3, teacher_rows, teacher_head * 0.3, weights)

    def of(divergence):
        return weighted_linear_distillation(*inputs, divergence=divergence, chunk_tokens=8)[1]

    assert torch.allclose(of(JensenShannon(1e-3)) / 1e-3, of(ForwardKL()), rtol=0.02)
    assert torch.allclose(of(JensenShannon(1 - 1e-3)) / 1e-3, of(ReverseKL()), rtol=0.02)
    for beta in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="beta"):
            JensenShannon(beta)


def test_logits_of_extreme_size_stay_finite():
    rows, head, teacher_rows, teacher_head, weights = tensors()
    for divergence in (ForwardKL(), ReverseKL(), JensenShannon(0.5)):
        total, _ = weighted_linear_distillation(
            rows * 100, head, teacher_rows * 100, teacher_head, weights,
            divergence=divergence, chunk_tokens=8,
        )  # fmt: skip
        gradients = torch.autograd.grad(total, (rows, head))
        assert all(x.isfinite().all() for x in (total, *gradients))


def test_what_does_not_fit_is_refused():
    rows, head, teacher_rows, teacher_head, weights = tensors()
    for changed, message in (
        ((rows, head, teacher_rows, teacher_head[:-1], weights), "97 and 96"),
        ((rows, head, teacher_rows[:-1], teacher_head, weights), "23, 22 and 23"),
    ):
        with pytest.raises(UserError, match=message):
            weighted_linear_distillation(*changed, divergence=ForwardKL(), chunk_tokens=8)
    with pytest.raises(UserError, match="temperature"):
        weighted_linear_distillation(
            *tensors(), divergence=ForwardKL(), temperature=0.0, chunk_tokens=8
        )


def test_only_a_frozen_head_goes_without_gradient():
    rows, head, *rest = tensors()
    total, _ = weighted_linear_distillation(
        rows, head.detach(), *rest, divergence=ForwardKL(), chunk_tokens=8
    )
    (gradient,) = torch.autograd.grad(total, (rows,))
    assert gradient.shape == rows.shape


def test_batches_are_scored_where_labels_are_and_weighed_by_sample():
    torch.manual_seed(0)
    batch = pack(4, 16, 7)
    shape = batch.input_ids.shape
    hidden = torch.randn(*shape, DIM, requires_grad=True)
    teacher = torch.randn(*shape, TEACHER_DIM)
    head, teacher_head = torch.randn(VOCAB, DIM), torch.randn(VOCAB, TEACHER_DIM)
    loss = Distillation(TokenWeighting(1.0), ForwardKL(), temperature=2.0, chunk_tokens=6)
    result = loss(hidden, head, teacher, teacher_head, batch)
    found = F.log_softmax(hidden @ head.T / 2, dim=-1)
    divergence = 4 * kl(F.log_softmax(teacher @ teacher_head.T / 2, dim=-1), found).flatten()
    scored = divergence[batch.scored_index]
    samples = batch.sample_ids.flatten()[batch.scored_index]
    means = torch.stack([scored[samples == i].mean() for i in range(3)])
    torch.testing.assert_close(result.numerator, means.sum())
    torch.testing.assert_close(result.token_nll, scored.detach())
    assert float(result.denominator) == float(loss.denominator(batch)) == pytest.approx(3)
    (gradient,) = torch.autograd.grad(result.numerator, hidden)
    touched = gradient.flatten(0, 1).any(-1).nonzero().flatten()
    assert torch.equal(touched, batch.scored_index.sort().values)


def test_no_rows_give_a_loss_of_zero():
    rows, head, teacher_rows, teacher_head, weights = tensors()
    total, losses = weighted_linear_distillation(
        rows[:0], head, teacher_rows[:0], teacher_head, weights[:0],
        divergence=ForwardKL(), chunk_tokens=8,
    )  # fmt: skip
    assert float(total.detach()) == 0
    assert len(losses) == 0
    for gradient in torch.autograd.grad(total, (rows, head)):
        assert torch.equal(gradient, torch.zeros_like(gradient))
