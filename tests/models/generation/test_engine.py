"""Many requests: each has its own settings, and none sees the others."""

import random

import pytest
import torch

from tests.models.test_generation import mixed_prompts, prompt
from tests.samples import image_example, text_example
from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.models.generation import (
    Budget,
    Decoding,
    Engine,
    FinishReason,
    Request,
    Sampling,
    generate_batch,
    generate_many,
    generate_text,
)
from vlmkit.models.generation.prefill import text_row
from vlmkit.models.generation.step import DecodeStep

SETTINGS = [
    Decoding(max_new_tokens=7, stop_ids=()),
    Decoding(max_new_tokens=3, sampling=Sampling(temperature=1.5, seed=3), stop_ids=()),
    Decoding(max_new_tokens=12, sampling=Sampling(temperature=0.8, top_k=20, min_p=0.05, seed=3)),
    Decoding(
        max_new_tokens=9,
        sampling=Sampling(temperature=1.0, repetition_penalty=1.2, presence_penalty=0.5),
        top_logprobs=2,
    ),
    Decoding(max_new_tokens=16, stop_ids=(), sampling=Sampling(frequency_penalty=0.7)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_qwen_tokenizer(998)


@pytest.fixture(scope="module")
def requests():
    """Of ragged prompts and answers, each with settings of its own."""
    prompts = [*mixed_prompts(), prompt(text_example(31, question=20)), prompt(image_example(32))]
    return [
        Request(prompt=prompts[i % len(prompts)], decoding=SETTINGS[i % len(SETTINGS)], sample=i)
        for i in range(23)
    ]


@pytest.fixture(scope="module")
def alone(tiny_model, requests):
    return [generate_many(tiny_model, [request])[0] for request in requests]


def close(found, expected):
    """Equal but for the last digits of log-probabilities."""
    for made, wanted in zip(found, expected, strict=True):
        assert made.token_ids == wanted.token_ids
        assert (made.finish_reason, made.stopped_by) == (wanted.finish_reason, wanted.stopped_by)
        assert (made.logprobs is None) == (wanted.logprobs is None)
        for one, other in zip(made.logprobs or (), wanted.logprobs or (), strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)  # measured 9.5e-7
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


@pytest.mark.parametrize(
    ("budget", "lookahead"),
    [
        (Budget(max_rows=23), 23),
        (Budget(max_rows=4, prefill_tokens=7), 5),
        (Budget(max_rows=8, kv_tokens=200, prefill_tokens=3), 64),
        (Budget(kv_tokens=45), 9),  # the longest fits alone
        (Budget(max_rows=1, prefill_tokens=1), 1),
    ],
)
def test_answers_do_not_depend_on_the_batch(tiny_model, requests, alone, budget, lookahead):
    found = generate_many(tiny_model, iter(requests), budget=budget, lookahead=lookahead)
    close(found, alone)


def test_order_of_requests_does_not_matter(tiny_model, requests, alone):
    order = list(range(len(requests)))
    random.Random(0).shuffle(order)
    found = generate_many(
        tiny_model, [requests[i] for i in order], budget=Budget(max_rows=5), lookahead=7
    )
    close(found, [alone[i] for i in order])


def test_rows_leave_and_others_enter(tiny_model, requests, monkeypatch):
    seen = []
    step = DecodeStep.__call__

    def spy(self, tokens, positions, cache):
        assert len(cache.lengths) == len(tokens)
        seen.append((len(tokens), cache.slots, cache.capacity))
        return step(self, tokens, positions, cache)

    monkeypatch.setattr(DecodeStep, "__call__", spy)
    finished, progress = {}, []
    found = generate_many(
        tiny_model,
        requests,
        budget=Budget(max_rows=6, kv_tokens=240),
        on_finished=lambda number, answer: finished.setdefault(number, answer),
        on_progress=progress.append,
    )
    assert [finished[i] for i in range(len(requests))] == found
    assert list(finished) != sorted(finished)  # reported as they finish
    assert max(rows for rows, _, _ in seen) == 6
    assert all(slots * capacity <= 240 for _, slots, capacity in seen)
    # all places are in use for most of the time, though answers take 3 to 16 tokens
    assert sum(rows for rows, _, _ in seen) / len(seen) > 4
    last = progress[-1]
    assert (last.finished, last.running) == (len(requests), 0)
    assert last.new_tokens == sum(len(answer.token_ids) for answer in found)
    assert last.prompt_tokens == sum(request.prompt_tokens for request in requests)
    assert [one.finished for one in progress] == sorted(one.finished for one in progress)


def test_prompts_are_read_when_their_turn_comes(tiny_model, requests):
    read = []

    def lazily():
        for i, request in enumerate(requests):
            read.append(i)
            yield request

    ahead = []
    generate_many(
        tiny_model,
        lazily(),
        budget=Budget(max_rows=3),
        lookahead=4,
        on_progress=lambda progress: ahead.append(len(read) - progress.finished),
    )
    assert read == list(range(len(requests)))
    assert max(ahead) <= 3 + 4


def test_samples_of_one_prompt_read_it_once(tiny_model, monkeypatch):
    rows = []
    forward = type(tiny_model).forward

    def spy(self, batch, **kwargs):
        rows.append(batch.segments.lengths)
        return forward(self, batch, **kwargs)

    monkeypatch.setattr(type(tiny_model), "forward", spy)
    one, other = mixed_prompts()[:2]
    how = Decoding(max_new_tokens=5, sampling=Sampling(temperature=1.5, seed=1), stop_ids=())
    wanted = [
        *Request(prompt=one, decoding=how).samples(3),
        *Request(prompt=other, decoding=how).samples(2),
    ]
    found = generate_many(tiny_model, wanted)
    assert rows == [(other.input_ids.shape[1], one.input_ids.shape[1])]  # the longest first
    assert len({answer.token_ids for answer in found}) == 5
    settings = {"max_new_tokens": 5, "sampling": how.sampling, "stop_ids": ()}
    expected = generate_batch(tiny_model, [one], num_samples=3, **settings)
    assert [list(answer.token_ids) for answer in found[:3]] == expected


def test_reasons_to_finish(tiny_model, tokenizer):
    batch = prompt(text_example(1))
    full = Decoding(max_new_tokens=10, stop_ids=())
    (whole,) = generate_many(
        tiny_model, [Request(prompt=batch, decoding=full)], tokenizer=tokenizer
    )
    assert (whole.finish_reason, whole.stopped_by) == (FinishReason.LENGTH, None)
    assert whole.text == tokenizer.decode(list(whole.token_ids))
    by_id = Decoding(max_new_tokens=10, stop_ids=[whole.token_ids[4]])
    pieces = [tokenizer.decode(list(whole.token_ids[:n])) for n in range(11)]
    stop = whole.text[len(pieces[5]) - 1 : len(pieces[6])]  # over a token border
    by_text = Decoding(max_new_tokens=10, stop_ids=(), stop=["never", stop])
    at_once = Decoding(max_new_tokens=10, stop_ids=whole.token_ids[:1])
    stopped, cut, empty = generate_many(
        tiny_model,
        [Request(prompt=batch, decoding=how) for how in (by_id, by_text, at_once)],
        tokenizer=tokenizer,
    )
    assert stopped.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[4])]
    assert (stopped.finish_reason, stopped.stopped_by) == (FinishReason.STOP, whole.token_ids[4])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stopped_by) == (FinishReason.STOP_STRING, stop)
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
    assert (empty.token_ids, empty.text, empty.finish_reason) == ((), "", FinishReason.STOP)

    *streamed, last = generate_text(
        tiny_model, Request(prompt=batch, decoding=by_text), tokenizer, prefill_tokens=2
    )
    assert last == cut
    assert "".join(streamed) == cut.text


def test_logprobs_are_the_models_own(tiny_model):
    batch = prompt(image_example(3))
    how = Decoding(
        max_new_tokens=6,
        sampling=Sampling(temperature=3.0, top_k=40, repetition_penalty=2.0, seed=5),
        stop_ids=(),
        top_logprobs=3,
    )
    (made,) = generate_many(tiny_model, [Request(prompt=batch, decoding=how)])
    assert made.logprobs is not None
    ids, positions = batch.input_ids, batch.position_ids
    visual = tiny_model.encode_vision(batch)
    for token, found in zip(made.token_ids, made.logprobs, strict=True):
        with torch.no_grad():
            hidden = tiny_model(text_row(ids, positions), visual=visual).hidden[0, -1]
            logits = tiny_model.decoder.logits(hidden)
        expected = logits.double().log_softmax(-1)
        assert found.logprob == pytest.approx(float(expected[token]), abs=1e-5)  # measured 4.8e-7
        best = expected.topk(3)
        assert [token for token, _ in found.top] == best.indices.tolist()
        assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        positions = torch.cat([positions, positions.max() + torch.ones(3, 1, 1).long()], dim=2)


def test_an_answer_can_be_given_up(tiny_model, requests, alone):
    engine = Engine(tiny_model, budget=Budget(max_rows=3))
    answers = [engine.add(request) for request in requests[:6]]
    engine.step()
    engine.cancel(answers[0])  # under way
    engine.cancel(answers[5])  # waiting
    while engine.running or engine.waiting:
        engine.step()
    close([answer.result() for answer in answers[1:5]], alone[1:5])
    assert not answers[0].finished
    assert answers[5].token_ids == []
    engine.cancel(answers[1])  # finished: nothing happens
    close([answers[1].result()], alone[1:2])
    assert engine.step() == []


def test_bad_requests_are_refused(tiny_model, tokenizer):
    batch = prompt(text_example(1))
    request = Request(prompt=batch, decoding=Decoding(max_new_tokens=50))
    small = Budget(kv_tokens=40)
    fine = Request(prompt=batch, decoding=Decoding(max_new_tokens=2))
    with pytest.raises(ValueError, match=r"request 1: .*max_new_tokens=50 needs 58 .*kv_tokens"):
        generate_many(tiny_model, [fine, request], budget=small)
    stopping = Request(prompt=batch, decoding=Decoding(max_new_tokens=2, stop=("x",)))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        Engine(tiny_model).add(stopping)
    with pytest.raises(ValueError, match="with a tokenizer"):
        Engine(tiny_model, streams=True)
    with pytest.raises(ValueError, match="lookahead"):
        generate_many(tiny_model, [], lookahead=0)
    assert generate_many(tiny_model, []) == []
    with pytest.raises(ValueError, match="number of samples"):
        fine.samples(0)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"stop": "abc"},
        {"stop": ("a", "")},
        {"stop_ids": (-1,)},
        {"stop_ids": ("a",)},
        {"top_logprobs": -1},
    ],
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))} must"):
        Decoding(**{"max_new_tokens": 4, **bad})


@pytest.mark.parametrize("bad", [{"max_rows": None}, {"kv_tokens": 0}, {"prefill_tokens": 1.5}])
def test_bad_budgets_are_named(bad):
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))} must"):
        Budget(**bad)
