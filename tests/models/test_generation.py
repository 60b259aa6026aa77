import pytest
import torch

from tests.conftest import spread
from tests.samples import (
    PAD_ID,
    image_example,
    text_example,
    two_images_example,
    video_example,
)
from vlmkit.build import build_model
from vlmkit.checkpoint.parity_cases import Case, Image, InputSpec, Video, make_inputs
from vlmkit.data.collate import collate
from vlmkit.models.generation import (
    DecodeStep,
    Sampling,
    generate,
    generate_batch,
    pack_prompts,
    prefill,
)
from vlmkit.models.generation.prefill import text_row
from vlmkit.models.generation.sampling import row_generator
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.pretrained import save_pretrained


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


def mixed_prompts():
    """Of different lengths; text, one image, two images, a video."""
    makers = (text_example, image_example, two_images_example, video_example)
    return [prompt(make(20 + i)) for i, make in enumerate(makers)]


def test_packed_prefill_equals_each_prompt_alone(model):
    prompts = mixed_prompts()
    line = pack_prompts(prompts)
    cache = model.decoder.new_cache(len(prompts), 40)
    ends = line.segments.cu_seqlens[1:] - 1
    with torch.no_grad():
        hidden = model(line, cache=cache).hidden[0, ends]
        alone = torch.stack([model(one).hidden[0, -1] for one in prompts])
    # measured 4.8e-7 on values up to 3.0
    assert torch.allclose(hidden, alone, atol=1e-5)
    assert cache.lengths == list(line.segments.lengths)


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
    assert len(calls) == 1


def test_row_draws_follow_the_distribution():
    logits = torch.tensor([0.7, 0.0, 0.3]).log().expand(2000, 3)
    generators = [row_generator(0, row) for row in range(2000)]
    draws = Sampling(temperature=1.0).pick_rows(logits, generators)
    assert set(draws) == {0, 2}
    assert draws.count(2) / 2000 == pytest.approx(0.3, abs=0.04)  # four standard errors


@pytest.mark.parametrize("config", ["qwen3vl_tiny", "qwen3vl_tiny_moe"])
def test_greedy_tokens_are_those_of_transformers(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours = spread(build_model(f"model={config}")).eval()
    save_pretrained(ours, tmp_path / "model")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    ).eval()
    rows = [[9, Image(2, 3), 7], [5, Video(2, 2, 2), 4], [3, Image(1, 2), Image(2, 2), 6], [12]]
    spec = InputSpec.of(ours)
    expected, prompts = [], []
    for i, row in enumerate(rows):
        inputs = make_inputs(Case(rows=[row]), spec, seed=i)
        made = theirs.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=20,
            min_new_tokens=20,
            pad_token_id=0,
            eos_token_id=None,
        )
        expected.append(made[0, inputs["input_ids"].shape[1] :].tolist())
        prompts.append(batch_from_hf(inputs, ours.special_tokens))
    assert generate_batch(ours, prompts, max_new_tokens=20, stop_ids=[]) == expected


def test_bad_requests_are_refused(tiny_model, tiny_batch):
    with pytest.raises(ValueError, match="one sample in one row"):
        generate_batch(tiny_model, [tiny_batch], max_new_tokens=1)
    with pytest.raises(ValueError, match="num_samples"):
        generate_batch(tiny_model, mixed_prompts(), max_new_tokens=1, num_samples=0)
    assert generate_batch(tiny_model, [], max_new_tokens=4) == []
    cache = tiny_model.decoder.new_cache(3, 64)
    with pytest.raises(ValueError, match="4 segments opens an empty cache"):
        tiny_model(pack_prompts(mixed_prompts()), cache=cache)
