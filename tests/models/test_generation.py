import pytest
import torch

from tests.samples import PAD_ID, image_example, text_example, video_example
from vlmkit.data.collate import collate
from vlmkit.models.generation import Sampling, decode_step, generate, prefill


def prompt(example):
    return collate([[example]], pad_id=PAD_ID, merge_size=2)


@pytest.fixture(params=["dense", "moe"])
def model(request, tiny_model, tiny_moe):
    return {"dense": tiny_model, "moe": tiny_moe}[request.param]


@pytest.mark.parametrize("make", [text_example, image_example, video_example])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_prefill_in_chunks_equals_one_pass(model, make, chunk):
    batch = prompt(make(5))
    with torch.no_grad():
        full = model(batch).hidden[0, -1]
        cache = model.decoder.new_cache(1, 64)
        pieces = prefill(model, batch, cache, chunk)[0, -1]
    # measured 1.8e-6 on values up to 2.9, DeepStack on
    assert torch.allclose(pieces, full, atol=1e-5)
    assert cache.lengths == [batch.input_ids.shape[1]]


@pytest.mark.parametrize("make", [text_example, image_example, video_example])
def test_decoding_equals_the_full_forward(model, make):
    batch = prompt(make(6))
    length = batch.input_ids.shape[1]
    tail = 3  # the last tokens are text in every example
    visual = model.encode_vision(batch)
    head = collate([[make(6)]], pad_id=PAD_ID, merge_size=2)
    with torch.no_grad():
        full = model(batch).hidden[0]
        cache = model.decoder.new_cache(1, 64)
        from vlmkit.models.generation import _text_row

        piece = _text_row(head.input_ids[:, :-tail], head.position_ids[..., :-tail])
        model(piece, visual=visual.window(0, length - tail), cache=cache)
        for i in range(length - tail, length):
            position = int(batch.position_ids[0, 0, i])
            step = decode_step(model, int(batch.input_ids[0, i]), position, cache)
            # measured 1.2e-6 on values up to 3.1
            assert torch.allclose(step[0, 0], full[i], atol=1e-5)


def test_greedy_equals_recomputing_every_step(tiny_model):
    example = image_example(8)
    tokens = list(generate(tiny_model, prompt(example), max_new_tokens=6, stop_ids=[]))
    batch = prompt(example)
    ids, positions = batch.input_ids, batch.position_ids
    visual = tiny_model.encode_vision(batch)
    from vlmkit.models.generation import _text_row

    for token in tokens:
        with torch.no_grad():
            hidden = tiny_model(_text_row(ids, positions), visual=visual).hidden
        assert int(tiny_model.decoder.logits(hidden[0, -1]).argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        positions = torch.cat([positions, positions.max() + torch.ones(3, 1, 1).long()], dim=2)


def test_stop_ids_end_the_answer_and_are_not_yielded(tiny_model):
    batch = prompt(text_example(1))
    tokens = list(generate(tiny_model, batch, max_new_tokens=8, stop_ids=[]))
    stop = tokens[3]
    shorter = list(generate(tiny_model, batch, max_new_tokens=8, stop_ids=[stop]))
    assert shorter == tokens[: tokens.index(stop)]


def test_same_seed_same_text_other_seed_other_text(tiny_model):
    batch = prompt(text_example(1))

    def draw(seed):
        sampling = Sampling(temperature=2.0, seed=seed)
        return list(generate(tiny_model, batch, max_new_tokens=12, sampling=sampling, stop_ids=[]))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_sampling_distribution():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    keep = Sampling(temperature=1.0).probabilities(logits)
    assert keep.tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert Sampling(temperature=1.0, top_k=2).probabilities(logits).tolist() == pytest.approx(
        [0, 4 / 7, 0, 3 / 7]
    )
    # 0.4 + 0.3 reach 0.65: the smallest set
    assert Sampling(temperature=1.0, top_p=0.65).probabilities(logits).tolist() == pytest.approx(
        [0, 4 / 7, 0, 3 / 7]
    )
    assert Sampling(temperature=1.0, top_p=0.01).probabilities(logits).tolist() == [0, 1, 0, 0]
    hot = Sampling(temperature=2.0).probabilities(logits)
    assert hot.tolist() == pytest.approx((logits / 2).softmax(-1).tolist())


def test_draws_follow_the_distribution():
    sampling, generator = Sampling(temperature=1.0), torch.Generator().manual_seed(0)
    logits = torch.tensor([0.7, 0.3]).log()
    draws = [sampling.pick(logits, generator) for _ in range(2000)]
    assert sum(draws) / 2000 == pytest.approx(0.3, abs=0.04)  # four standard errors


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"temperature": -1}, "temperature"), ({"top_k": -2}, "top_k"), ({"top_p": 0}, "top_p")],
)
def test_bad_sampling_is_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**bad)


def test_prompt_must_be_one_sample(tiny_model, tiny_batch):
    with pytest.raises(ValueError, match="one sample in one row"):
        next(generate(tiny_model, tiny_batch, max_new_tokens=1))


def test_full_cache_is_refused(tiny_model):
    cache = tiny_model.decoder.new_cache(1, 4)
    with pytest.raises(ValueError, match="holds 4 tokens a row"):
        prefill(tiny_model, prompt(text_example(1)), cache)
