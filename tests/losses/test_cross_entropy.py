from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.samples import PAD_ID, text_example
from vlmkit.batch import IGNORED_LABEL
from vlmkit.data.collate import collate
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.units import PerResponse, PerSample
from vlmkit.losses.weighting import TokenWeighting

VOCAB = 1024


def pack(*answers: int):
    rows = [[text_example(i, question=3, answer=n) for i, n in enumerate(answers)]]
    return collate(rows, pad_id=PAD_ID, merge_size=2)


def naive(hidden, weight, batch, power):
    """All logits at once, in the input's precision, weights by counting."""
    nll = F.cross_entropy(
        (hidden @ weight.T).flatten(0, 1),
        batch.labels.flatten(),
        reduction="none",
        ignore_index=IGNORED_LABEL,
    )
    total = norm = 0.0
    for sample in range(batch.num_samples):
        mine = (batch.sample_ids.flatten() == sample) & (batch.labels.flatten() != IGNORED_LABEL)
        count = int(mine.sum())
        total = total + nll[mine].sum() * count**-power
        norm += count ** (1 - power)
    return total, norm


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_value_and_gradient_equal_the_plain_computation(power, chunk):
    torch.manual_seed(0)
    batch = pack(4, 16, 7)
    hidden = torch.randn(*batch.input_ids.shape, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 24, dtype=torch.float64, requires_grad=True)
    result = CrossEntropy(TokenWeighting(power), chunk)(hidden, weight, batch)
    total, norm = naive(hidden, weight, batch, power)
    assert float(result.numerator.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert float(result.denominator) == pytest.approx(norm, rel=1e-6)
    ours = torch.autograd.grad(result.numerator, (hidden, weight))
    theirs = torch.autograd.grad(total, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        # measured 7e-7 on gradients up to 3.7: softmax and weights are float32
        assert torch.allclose(a, b, atol=5e-6)


def test_shares_of_responses_follow_the_published_table():
    batch = pack(4, 16)
    for power, expected in ((0.0, 0.2), (0.5, 1 / 3), (1.0, 0.5)):
        samples = batch.sample_ids.flatten()[batch.scored_index]
        weights = TokenWeighting(power)(samples, 2)
        assert float(weights[samples == 0].sum() / weights.sum()) == pytest.approx(expected)


def test_equal_lengths_make_all_weightings_equal():
    batch = pack(6, 6, 6)
    hidden, weight = torch.randn(*batch.input_ids.shape, 24), torch.randn(VOCAB, 24)
    losses = []
    for power in (0.0, 0.5, 1.0):
        result = CrossEntropy(TokenWeighting(power))(hidden, weight, batch)
        losses.append(float(result.numerator / result.denominator))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("unit", [PerSample(), PerResponse()])
@pytest.mark.parametrize("z_coefficient", [0.0, 1e-3])
@pytest.mark.parametrize("precision", ["float32", "bf16_mixed", "bf16_true"])
def test_nothing_scored_gives_zero_loss_and_zero_gradient(power, unit, z_coefficient, precision):
    batch = pack(5)
    batch = replace(
        batch,
        labels=torch.full_like(batch.labels, IGNORED_LABEL),
        scored_index=torch.empty(0, dtype=torch.int64),
        response_ids=torch.full_like(batch.labels, -1),
        num_responses=0,
    )
    dtype = torch.bfloat16 if precision == "bf16_true" else torch.float32
    # what stands at places that are not scored reaches nothing
    hidden = torch.full((*batch.input_ids.shape, 24), torch.nan, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, 24, dtype=dtype, requires_grad=True)
    loss = CrossEntropy(TokenWeighting(power), unit=unit, z_coefficient=z_coefficient)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16_mixed"):
        result = loss(hidden, weight, batch)
        scores = loss.score(hidden, weight, batch)
    assert float(result.numerator.detach()) == 0
    assert float(result.denominator) == float(loss.denominator(batch)) == 0
    assert len(result.token_nll) == len(scores.nll) == len(scores.correct) == 0
    for gradient in torch.autograd.grad(result.numerator, (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("chunk", [3, 1000])
def test_z_loss_equals_the_plain_formula(chunk):
    torch.manual_seed(0)
    coefficient = 1e-2
    batch = pack(4, 16, 7)
    hidden = torch.randn(*batch.input_ids.shape, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 24, dtype=torch.float64, requires_grad=True)
    result = CrossEntropy(TokenWeighting(0.5), chunk, z_coefficient=coefficient)(
        hidden, weight, batch
    )
    log_z = (hidden @ weight.T).logsumexp(-1).flatten()[batch.scored_index]
    weights = torch.tensor([4**-0.5] * 4 + [16**-0.5] * 16 + [7**-0.5] * 7, dtype=torch.float64)
    z_total = coefficient * (weights * log_z**2).sum()
    total, norm = naive(hidden, weight, batch, 0.5)
    assert float(result.numerator.detach()) == pytest.approx(float((total + z_total).detach()))
    assert float(result.z_numerator) == pytest.approx(float(z_total.detach()))
    assert float(result.denominator) == pytest.approx(norm)
    assert not result.z_numerator.requires_grad
    ours = torch.autograd.grad(result.numerator, (hidden, weight))
    theirs = torch.autograd.grad(total + z_total, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=5e-6)  # measured 5.2e-7 on gradients up to 1.6


def test_z_loss_stays_out_of_the_logged_likelihood():
    torch.manual_seed(0)
    batch = pack(4, 7)
    hidden, weight = torch.randn(*batch.input_ids.shape, 24), torch.randn(VOCAB, 24)
    without = CrossEntropy(TokenWeighting(0.5))(hidden, weight, batch)
    with_z = CrossEntropy(TokenWeighting(0.5), z_coefficient=1e-3)(hidden, weight, batch)
    assert without.z_numerator is None
    assert torch.equal(without.token_nll, with_z.token_nll)
    difference = float(with_z.numerator - without.numerator)
    assert difference == pytest.approx(float(with_z.z_numerator), rel=1e-4)


@pytest.mark.parametrize("z_coefficient", [0.0, 1e-2])
@pytest.mark.parametrize("precision", ["bf16_mixed", "bf16_true"])
def test_half_precision_rounds_products_and_nothing_else(precision, z_coefficient):
    """Against autograd through bfloat16 products with a float32 softmax, weights and sums."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16_true" else torch.float32
    batch = pack(4, 16, 7)
    hidden = torch.randn(*batch.input_ids.shape, 24).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, 24).to(dtype).requires_grad_()
    loss = CrossEntropy(TokenWeighting(0.5), 5, z_coefficient=z_coefficient)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16_mixed"):
        result = loss(hidden, weight, batch)
        logits = F.linear(hidden.flatten(0, 1)[batch.scored_index], weight)
    assert logits.dtype == torch.bfloat16
    weights = torch.tensor([4**-0.5] * 4 + [16**-0.5] * 16 + [7**-0.5] * 7)
    targets = batch.labels.flatten()[batch.scored_index]
    nll = F.cross_entropy(logits.float(), targets, reduction="none")
    log_z = logits.float().logsumexp(-1)
    total = (weights * (nll + z_coefficient * log_z**2)).sum()
    assert result.numerator.dtype == result.token_nll.dtype == torch.float32
    assert torch.allclose(result.token_nll, nll, atol=1e-5)  # measured 0
    assert float(result.numerator.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    ours = torch.autograd.grad(result.numerator, (hidden, weight))
    theirs = torch.autograd.grad(total, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        assert torch.allclose(
            a, b, atol=2e-2
        )  # measured 0.0078, one rounding, on gradients up to 2.4


def test_a_frozen_head_or_frozen_hidden_states_cost_no_gradient():
    torch.manual_seed(0)
    batch = pack(4, 7)
    hidden, weight = torch.randn(*batch.input_ids.shape, 24), torch.randn(VOCAB, 24)
    loss = CrossEntropy(TokenWeighting(0.5))

    def gradients(*, hidden_learns: bool, head_learns: bool) -> list[torch.Tensor | None]:
        leaves = [hidden.clone().requires_grad_(hidden_learns), weight.clone()]
        leaves[1].requires_grad_(head_learns)
        loss(*leaves, batch).numerator.backward()
        return [leaf.grad for leaf in leaves]

    both = gradients(hidden_learns=True, head_learns=True)
    only_hidden = gradients(hidden_learns=True, head_learns=False)
    only_head = gradients(hidden_learns=False, head_learns=True)
    assert only_hidden[1] is None
    assert only_head[0] is None
    assert torch.equal(only_hidden[0], both[0])
    assert torch.equal(only_head[1], both[1])
    assert not loss(hidden, weight, batch).numerator.requires_grad


def test_scores():
    batch = pack(4)
    weight = torch.eye(VOCAB)
    hidden = torch.zeros(*batch.input_ids.shape, VOCAB)
    targets = batch.labels.flatten()[batch.scored_index]
    hidden.view(-1, VOCAB)[batch.scored_index, targets] = 50.0
    hidden.view(-1, VOCAB)[batch.scored_index[0]] = 0.0
    scores = CrossEntropy(TokenWeighting(0)).score(hidden, weight, batch)
    assert scores.correct.tolist() == [bool(targets[0] == 0), True, True, True]
    assert scores.nll[1:].tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        TokenWeighting(1.5)
    with pytest.raises(ValueError, match="chunk_tokens"):
        CrossEntropy(TokenWeighting(0), 0)
    with pytest.raises(ValueError, match="z_coefficient"):
        CrossEntropy(TokenWeighting(0), z_coefficient=-1.0)
