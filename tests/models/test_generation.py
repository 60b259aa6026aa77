import pytest
import torch

from tests.samples import (
    PAD_ID,
    image_example,
    text_example,
    two_images_example,
    video_example,
)
from vlmkit.data.collate import collate
from vlmkit.language.kv_line import KVLine
from vlmkit.models.generation import (
    DecodeStep,
    Sampling,
    generate,
    generate_batch,
    pack_prompts,
    prefill,
)
from vlmkit.models.generation.choice import Choice, Chooser
from vlmkit.models.generation.prefill import text_row
from vlmkit.models.generation.sampling import row_generator


def prompt(example):
    return collate([[example]], pad_id=PAD_ID, merge_size=2)


def opened(model, prompts, room=30):
    """A cache with a slot for each prompt."""
    lengths = [one.input_ids.shape[1] for one in prompts]
    cache = model.decoder.new_cache(0, max(lengths) + room, slots=len(prompts))
    return cache, cache.enter(lengths)


@pytest.fixture(params=["dense", "moe"])
def model(request, tiny_model, tiny_moe):
    return {"dense": tiny_model, "moe": tiny_moe}[request.param]


@pytest.mark.parametrize("make", [text_example, image_example, video_example])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_prefill_in_chunks_equals_one_pass(model, make, chunk):
    batch = prompt(make(5))
    with torch.no_grad():
        full = model(batch).hidden[0, -1]
        cache, rows = opened(model, [batch])
        pieces = prefill(model, [batch], cache, rows, chunk)[0]
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
        piece = text_row(head.input_ids[:, :-tail], head.position_ids[..., :-tail])
        model(piece, visual=visual.window(0, length - tail), cache=cache)
        for i in range(length - tail, length):
            step = DecodeStep(model)(batch.input_ids[0, [i]], batch.position_ids[0, 0, [i]], cache)
            # measured 1.3e-6 on values up to 3.3
            assert torch.allclose(step[0], full[i], atol=1e-5)


def test_greedy_equals_recomputing_every_step(tiny_model):
    example = image_example(8)
    tokens = list(generate(tiny_model, prompt(example), max_new_tokens=6, stop_ids=[]))
    batch = prompt(example)
    ids, positions = batch.input_ids, batch.position_ids
    visual = tiny_model.encode_vision(batch)

    for token in tokens:
        with torch.no_grad():
            hidden = tiny_model(text_row(ids, positions), visual=visual).hidden
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
        tiny_model(prompt(text_example(1)), cache=cache)
    with pytest.raises(ValueError, match="0 slots of 4 tokens"):
        tiny_model.decoder.new_cache(0, 4, slots=0).enter([3])


def mixed_prompts():
    """Of different lengths; text, one image, two images, a video."""
    makers = (text_example, image_example, two_images_example, video_example)
    return [prompt(make(20 + i)) for i, make in enumerate(makers)]


@pytest.mark.parametrize("piece_tokens", [None, 1, 5, 11])
def test_packed_prefill_equals_each_prompt_alone(model, piece_tokens):
    prompts = mixed_prompts()
    cache, rows = opened(model, prompts)
    with torch.no_grad():
        hidden = prefill(model, prompts, cache, rows, piece_tokens)
        alone = torch.stack([model(one).hidden[0, -1] for one in prompts])
    # measured 1.9e-6 on values up to 3.0
    assert torch.allclose(hidden, alone, atol=1e-5)
    assert cache.lengths == [one.input_ids.shape[1] for one in prompts]


@pytest.mark.parametrize("new_tokens", [9, 20])  # 20 takes the layout by input feature
def test_many_prompts_equal_one_by_one(model, new_tokens):
    prompts = mixed_prompts()
    alone = [list(generate(model, one, max_new_tokens=new_tokens, stop_ids=[])) for one in prompts]
    together = generate_batch(model, prompts, max_new_tokens=new_tokens, stop_ids=[])
    assert together == alone
    assert len({tuple(row) for row in alone}) == 4
    group = generate_batch(model, prompts, max_new_tokens=5, stop_ids=[], num_samples=3)
    assert group == [row[:5] for row in alone for _ in range(3)]


def test_rows_that_stop_leave_the_batch(tiny_model, monkeypatch):
    prompts = mixed_prompts()
    full = generate_batch(tiny_model, prompts, max_new_tokens=12, stop_ids=[])
    stop = full[1][4]
    rows = []
    step = DecodeStep.__call__

    def spy(self, tokens, positions, cache):
        rows.append((len(tokens), cache.rows))
        return step(self, tokens, positions, cache)

    monkeypatch.setattr(DecodeStep, "__call__", spy)
    answers = generate_batch(tiny_model, prompts, max_new_tokens=12, stop_ids=[stop])
    assert answers == [row[: row.index(stop)] if stop in row else row for row in full]
    lengths = [len(row) for row in answers]
    assert min(lengths) < 12
    # a row takes part in a step only if it goes on after the tokens so far
    expected = [sum(length > made for length in lengths) for made in range(11)]
    assert rows == [(count, count) for count in expected if count]


def test_a_rows_samples_do_not_depend_on_its_neighbours(tiny_model):
    prompts = mixed_prompts()
    how = Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=7)
    settings = {"max_new_tokens": 8, "sampling": how, "stop_ids": []}
    together = generate_batch(tiny_model, prompts, **settings)
    assert generate_batch(tiny_model, prompts[:2], **settings) == together[:2]
    group = generate_batch(tiny_model, prompts[:1], num_samples=4, **settings)
    assert group[0] == together[0]
    assert len({tuple(row) for row in group}) == 4
    assert generate_batch(tiny_model, prompts[:1], num_samples=2, **settings) == group[:2]


def test_media_are_encoded_once(tiny_model, monkeypatch):
    calls = []
    encode = type(tiny_model).encode_vision

    def spy(self, batch):
        calls.append(batch.vision.segments.num_tokens)
        return encode(self, batch)

    monkeypatch.setattr(type(tiny_model), "encode_vision", spy)
    generate_batch(tiny_model, mixed_prompts(), max_new_tokens=3, stop_ids=[], num_samples=2)
    (every,) = calls
    calls.clear()
    generate_batch(tiny_model, mixed_prompts(), max_new_tokens=3, stop_ids=[], prefill_tokens=6)
    # frames of 6, 2, 4, 4 and 4 visual tokens; calls of 6 at most, each frame once
    assert [patches // 4 for patches in calls] == [6, 6, 4, 4]
    assert sum(calls) == every


def test_row_draws_follow_the_distribution():
    logits = torch.tensor([0.7, 0.0, 0.3]).log().expand(2000, 3)
    how = Sampling(temperature=1.0)
    draws = Choice([Chooser(sampling=how, generator=row_generator(0, i)) for i in range(2000)])(
        logits
    )
    assert set(draws) == {0, 2}
    assert draws.count(2) / 2000 == pytest.approx(0.3, abs=0.04)  # four standard errors


def test_bad_requests_are_refused(tiny_model, tiny_batch):
    with pytest.raises(ValueError, match="one sample in one row"):
        generate_batch(tiny_model, [tiny_batch], max_new_tokens=1)
    with pytest.raises(ValueError, match="num_samples"):
        generate_batch(tiny_model, mixed_prompts(), max_new_tokens=1, num_samples=0)
    assert generate_batch(tiny_model, [], max_new_tokens=4) == []
    line = pack_prompts(mixed_prompts())
    with pytest.raises(ValueError, match="a batch of 1 rows cannot go on with a cache of 3"):
        tiny_model(line, cache=tiny_model.decoder.new_cache(3, 64))
    cache, rows = opened(tiny_model, mixed_prompts())
    with pytest.raises(ValueError, match="4 segments cannot go on with 3 rows"):
        tiny_model(line, cache=KVLine(cache, rows[:3]))
    with pytest.raises(ValueError, match="do not fit rows that end at"):
        tiny_model(line, cache=KVLine(cache, [1, 0, 2, 3]))
