"""Weights by sample and by response, against their definition, however the samples are packed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses import mixes
from tests.samples import PAD_ID, text_example
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.units import PerResponse, PerSample
from vlmkit.losses.weighting import TokenWeighting

VOCAB, DIM = 1024, 16
UNITS = {"sample": PerSample(), "response": PerResponse()}
POWERS = {"token": 0.0, "sqrt": 0.5, "unit": 1.0}


def expected_weights(runs: mixes.Runs, unit: str, power: float) -> list[float]:
    responses = mixes.scored_tokens(runs)
    counts = {r: responses.count(r) if unit == "response" else len(responses) for r in responses}
    return [counts[r] ** -power for r in responses]


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=60, deadline=None)
@given(
    mix=st.lists(mixes.samples, min_size=1, max_size=6),
    per_row=st.integers(1, 6),
    power=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_weights_are_those_of_the_definition(unit, mix, per_row, power):
    examples = [mixes.make(runs, seed) for seed, runs in enumerate(mix)]
    rows = [examples[i : i + per_row] for i in range(0, len(examples), per_row)]
    batch = collate(rows, pad_id=PAD_ID, merge_size=2)
    ids, count = UNITS[unit](batch)
    weights = TokenWeighting(power)(ids.flatten()[batch.scored_index], count)
    expected = [weight for runs in mix for weight in expected_weights(runs, unit, power)]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    loss = CrossEntropy(TokenWeighting(power), unit=UNITS[unit])
    assert float(loss.denominator(batch)) == pytest.approx(sum(expected), rel=1e-6)


TALK: mixes.Runs = [(3, -1), (9, 1), (2, -1), None, (4, -1), (2, 3), (1, -1)]
DOCUMENT: mixes.Runs = [(4, 0), None, (7, 0), None, (1, 0)]
EIGHT = [
    mixes.make(runs, seed)
    for seed, runs in enumerate(
        [TALK, DOCUMENT, [(3, -1), (30, 1)], [(2, -1), (1, 1)], [(5, -1)], DOCUMENT[:1], TALK, TALK]
    )
]


def gradients(parts: list, loss: CrossEntropy) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    table, head = (
        torch.randn(VOCAB, DIM, generator=generator).requires_grad_() for _ in ("table", "head")
    )
    results = [loss(table[part.input_ids], head, part) for part in parts]
    total = sum(loss.denominator(part) for part in parts)
    objective = sum(result.numerator for result in results) / total
    return objective.detach(), *torch.autograd.grad(objective, (table, head))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("power", POWERS)
@settings(max_examples=8, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=8, max_size=8),
    z_coefficient=st.sampled_from([0.0, 1e-2]),
)
def test_the_gradient_does_not_depend_on_the_cut(unit, power, places, z_coefficient):
    loss = CrossEntropy(
        TokenWeighting(POWERS[power]), unit=UNITS[unit], z_coefficient=z_coefficient
    )
    parts = []
    for micro in range(4):
        mine = [(e, row) for e, (m, row) in zip(EIGHT, places, strict=True) if m == micro]
        if mine:
            parts.append(mixes.cut([e for e, _ in mine], [row for _, row in mine]))
    whole = [mixes.cut(EIGHT, [0] * 8)]
    for a, b in zip(gradients(parts, loss), gradients(whole, loss), strict=True):
        # measured 4.8e-6 on a loss of 15.6; gradients are smaller
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_responses_weigh_by_the_published_shares():
    """Two answers of one chat, 4 and 16 tokens: 20, 33 and 50 % (InternVL2.5's table)."""
    batch = mixes.cut([mixes.make([(3, -1), (4, 1), (2, -1), (16, 3)], 0)], [0])
    ids, count = PerResponse()(batch)
    mine = ids.flatten()[batch.scored_index]
    for power, expected in ((0.0, 0.2), (0.5, 1 / 3), (1.0, 0.5)):
        weights = TokenWeighting(power)(mine, count)
        assert float(weights[mine == 0].sum() / weights.sum()) == pytest.approx(expected)


def test_a_batch_that_does_not_know_its_responses_is_refused():
    batch = collate([[text_example(0)]], pad_id=PAD_ID, merge_size=2)
    batch = replace(batch, response_ids=None)
    loss = CrossEntropy(TokenWeighting(0.5), unit=PerResponse())
    with pytest.raises(ConfigError, match=r"loss/unit=response.*loss/unit=sample"):
        loss.denominator(batch)
