from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.samples import PAD_ID, text_example
from vlmkit.batch import IGNORED_LABEL
from vlmkit.data.collate import collate
from vlmkit.losses.cross_entropy import CrossEntropy
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
    assert float(result.numerator) == pytest.approx(float(total), rel=1e-6)
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


def test_nothing_scored_gives_zero_loss_and_zero_gradient():
    batch = pack(5)
    batch = replace(
        batch,
        labels=torch.full_like(batch.labels, IGNORED_LABEL),
        scored_index=torch.empty(0, dtype=torch.int64),
    )
    hidden = torch.randn(*batch.input_ids.shape, 24, requires_grad=True)
    weight = torch.randn(VOCAB, 24, requires_grad=True)
    result = CrossEntropy(TokenWeighting(0.5))(hidden, weight, batch)
    assert float(result.numerator.detach()) == 0
    assert float(result.denominator) == 0
    for gradient in torch.autograd.grad(result.numerator, (hidden, weight)):
        assert not gradient.any()


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
