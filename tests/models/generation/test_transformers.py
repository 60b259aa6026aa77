"""Greedy tokens are those of transformers, whatever is batched, cut into pieces or penalised."""

import pytest
import torch

from tests.conftest import spread
from vlmkit.build import build_model
from vlmkit.checkpoint.parity_cases import Case, Image, InputSpec, Video, make_inputs
from vlmkit.models.generation import Budget, Decoding, Request, Sampling, generate_many
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.pretrained import save_pretrained

ROWS = [
    [9, Image(2, 3), 7],
    [3, Image(1, 2), Image(2, 2), 6, Image(3, 2), 2],
    [5, Video(3, 2, 2), 4],
    [2, Video(2, 1, 2), 3, Image(2, 2), 5],
    [12],
    [31],
]
MODELS = {
    "dense": ("model=qwen3vl_tiny", "size.tie_embeddings=false"),
    "tied": ("model=qwen3vl_tiny", "size.tie_embeddings=true"),
    "moe": ("model=qwen3vl_tiny_moe",),
}
NEW_TOKENS = 20


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """One model in both implementations."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours = spread(build_model(*MODELS[request.param])).eval()
    folder = tmp_path_factory.mktemp("pair") / "model"
    save_pretrained(ours, folder)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return ours, theirs.eval()


def answers_of(theirs, inputs, **settings):
    made = theirs.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        eos_token_id=None,
        **settings,
    )
    return [tuple(row) for row in made[:, inputs["input_ids"].shape[1] :].tolist()]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens_are_those_of_transformers(pair, penalty):
    ours, theirs = pair
    spec = InputSpec.of(ours)
    every = [make_inputs(Case(rows=[row]), spec, seed=i) for i, row in enumerate(ROWS)]
    expected = [answers_of(theirs, inputs, repetition_penalty=penalty)[0] for inputs in every]
    assert len(set(expected)) == len(ROWS)
    how = Decoding(
        max_new_tokens=NEW_TOKENS,
        # filters do not matter to greedy choice
        sampling=Sampling(repetition_penalty=penalty, min_p=0.5, top_k=3),
        stop_ids=(),
    )
    wanted = [
        Request(prompt=batch_from_hf(one, ours.special_tokens), decoding=how) for one in every
    ]
    for budget in (Budget(), Budget(prefill_tokens=5), Budget(max_rows=2, prefill_tokens=13)):
        found = generate_many(ours, wanted, budget=budget)
        assert [answer.token_ids for answer in found] == expected, budget


def test_a_padded_batch_of_transformers_makes_the_same(pair):
    ours, theirs = pair
    rows = [row for row in ROWS if not any(isinstance(part, Video) for part in row)]
    inputs = make_inputs(Case(rows=rows, pad_left=True), InputSpec.of(ours), seed=7)
    expected = answers_of(theirs, inputs)
    patches = iter(inputs["pixel_values"].split(inputs["image_grid_thw"].prod(1).tolist()))
    grids = iter(inputs["image_grid_thw"])
    wanted = []
    for row, ids, mask in zip(
        rows, inputs["input_ids"], inputs["attention_mask"].bool(), strict=True
    ):
        one = {"input_ids": ids[mask][None]}
        if images := sum(isinstance(part, Image) for part in row):
            one["pixel_values"] = torch.cat([next(patches) for _ in range(images)])
            one["image_grid_thw"] = torch.stack([next(grids) for _ in range(images)])
        how = Decoding(max_new_tokens=NEW_TOKENS, stop_ids=())
        wanted.append(Request(prompt=batch_from_hf(one, ours.special_tokens), decoding=how))
    found = generate_many(ours, wanted)
    assert [answer.token_ids for answer in found] == expected
