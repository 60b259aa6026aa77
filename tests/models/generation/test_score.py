"""Log-likelihoods of given answers, against one forward pass each."""

import pytest
import torch

from tests.models.test_generation import prompt
from tests.samples import image_example, text_example, two_images_example, video_example
from vlmkit.models.generation import generate_batch, score
from vlmkit.models.generation.prefill import text_row

ANSWERS = [[5], [5, 9, 700], [31, 5], [8, 8, 8, 8, 8, 2], [44]]


def by_one_pass(model, batch, answer):
    """In float64 from the logits of one forward pass over prompt and answer."""
    length, more = batch.input_ids.shape[1], len(answer)
    ids = torch.cat([batch.input_ids, torch.tensor([answer])], dim=1)
    steps = batch.position_ids.max() + 1 + torch.arange(more)
    positions = torch.cat([batch.position_ids, steps.expand(3, 1, more)], dim=2)
    with torch.no_grad():
        hidden = model(text_row(ids, positions), visual=model.encode_vision(batch)).hidden[0]
        logits = model.decoder.logits(hidden[length - 1 : -1]).double()
    return logits.log_softmax(-1)[range(more), answer]


@pytest.mark.parametrize("make", [text_example, image_example, two_images_example, video_example])
@pytest.mark.parametrize("prefill_tokens", [None, 5])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_scores_equal_one_forward_pass(tiny_model, tiny_moe, make, prefill_tokens, kind):
    model = {"dense": tiny_model, "moe": tiny_moe}[kind]
    batch = prompt(make(4))
    found = score(model, batch, ANSWERS, prefill_tokens=prefill_tokens)
    for answer, one in zip(ANSWERS, found, strict=True):
        expected = by_one_pass(model, batch, answer)
        assert one.logprobs == pytest.approx(expected.tolist(), abs=1e-5)  # measured 9.3e-7
        assert one.total == pytest.approx(float(expected.sum()), abs=1e-4)
        assert one.mean == pytest.approx(one.total / len(answer))


def test_the_greedy_answer_is_recognised(tiny_model):
    batch = prompt(image_example(2))
    (answer,) = generate_batch(tiny_model, [batch], max_new_tokens=5, stop_ids=())
    other = [*answer[:-1], answer[-1] ^ 1]
    found = score(tiny_model, batch, [answer, answer[:2], other])
    assert [one.greedy for one in found] == [True, True, False]


def test_the_prompt_is_read_once(tiny_model, monkeypatch):
    rows = []
    forward = type(tiny_model).forward

    def spy(self, batch, **kwargs):
        rows.append(batch.segments.lengths)
        return forward(self, batch, **kwargs)

    monkeypatch.setattr(type(tiny_model), "forward", spy)
    batch = prompt(image_example(2))
    score(tiny_model, batch, ANSWERS)
    assert rows == [(batch.input_ids.shape[1],), (2, 1, 5)]  # nothing is fed of single tokens
    rows.clear()
    score(tiny_model, batch, [[1], [2], [3], [4]])
    assert rows == [(batch.input_ids.shape[1],)]


def test_bad_answers_are_refused(tiny_model):
    batch = prompt(text_example(2))
    with pytest.raises(ValueError, match="answer 1 is empty"):
        score(tiny_model, batch, [[1], []])
    with pytest.raises(ValueError, match="answer 0 holds ids outside the vocabulary"):
        score(tiny_model, batch, [[10**6]])
    assert score(tiny_model, batch, []) == []
