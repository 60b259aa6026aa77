"""Penalties and filters, against transformers' processors and by hand."""

import pytest
import torch

from vlmkit.models.generation.choice import Choice, Chooser
from vlmkit.models.generation.sampling import History, Sampling, row_generator

SETTINGS = {
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.3, "top_k": 9},
    "top_p": {"temperature": 1.0, "top_p": 0.6},
    "min_p": {"temperature": 1.5, "min_p": 0.2},
    "repetition_penalty": {"temperature": 1.0, "repetition_penalty": 1.7},
    "below_one": {"temperature": 1.0, "repetition_penalty": 0.6},
    "all": {
        "temperature": 0.8,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.3,
    },
}


def history_of(prompt, answer):
    history = History(torch.tensor(prompt), room=len(answer))
    for token in answer:
        history.add(token)
    return history


@pytest.mark.parametrize("name", SETTINGS)
def test_probabilities_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    made = SETTINGS[name]
    sampling = Sampling(**made)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 200, generator=generator)
    tokens = torch.randint(200, (40, 25), generator=generator)
    processors = transformers.LogitsProcessorList()  # in the order of transformers' generate
    if "repetition_penalty" in made:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(made["repetition_penalty"]))
    processors.append(transformers.TemperatureLogitsWarper(made["temperature"]))
    for key, kind in (
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if key in made:
            processors.append(kind(made[key]))
    expected = processors(tokens, logits.clone()).softmax(-1)
    ours = logits.clone()
    if sampling.penalizes:
        for row, own in zip(ours, tokens.tolist(), strict=True):
            history_of(own[:10], own[10:]).penalize(row, sampling)
    found = sampling.probabilities(ours)
    assert torch.equal(found > 0, expected > 0)
    assert torch.allclose(found, expected, atol=1e-6)  # measured 1.2e-7


def test_the_order_is_that_of_transformers_generate():
    """What `generate` builds from all settings at once."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig(do_sample=True, **SETTINGS["all"])
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            vocab_size=9,
        )
    )
    made = model._get_logits_processor(config, input_ids_seq_length=3, model_kwargs={})
    assert [type(one).__name__ for one in made] == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]


def test_presence_and_frequency_count_the_answer_only():
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0, -0.5])
    sampling = Sampling(
        temperature=1.0, presence_penalty=0.25, frequency_penalty=0.5, repetition_penalty=2.0
    )
    history_of([0, 1], [1, 3, 3]).penalize(logits, sampling)
    # 0: in the prompt; 1: in both, once made; 3: made twice; 2 and 4: never seen
    expected = [1.0 / 2, -1.0 * 2 - 0.5 - 0.25, 0.5, 2.0 / 2 - 2 * 0.5 - 0.25, -0.5]
    assert logits.tolist() == pytest.approx(expected)


def test_penalties_change_greedy_choice_and_leave_the_logits():
    logits = torch.tensor([[1.0, 0.9, 0.8], [1.0, 0.9, 0.8]])
    before = logits.clone()
    penalized = Sampling(presence_penalty=0.15)
    history = History(torch.tensor([2]), room=4)
    choosers = [
        Chooser(sampling=Sampling(), generator=row_generator(0, 0)),
        Chooser(sampling=penalized, generator=row_generator(0, 1), history=history),
    ]
    choice = Choice(choosers)
    assert [choice(logits) for _ in range(4)] == [[0, 0], [0, 1], [0, 0], [0, 0]]
    assert torch.equal(logits, before)


def test_rows_choose_alike_alone_and_beside_others():
    generator = torch.Generator().manual_seed(1)
    steps = 4 * torch.randn(12, 5, 50, generator=generator)
    settings = [
        Sampling(),
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=1.0, seed=2),
        Sampling(temperature=0.7, top_k=5, min_p=0.1, seed=1),
        Sampling(temperature=1.0, seed=1, repetition_penalty=1.5, frequency_penalty=0.3),
    ]

    def choosers(rows):
        return [
            Chooser(
                sampling=settings[row],
                generator=row_generator(settings[row].seed, 0),
                history=History(torch.arange(9), 12) if settings[row].penalizes else None,
            )
            for row in rows
        ]

    together = Choice(choosers(range(5)))
    found = torch.tensor([together(step) for step in steps])
    for row in range(5):
        alone = Choice(choosers([row]))
        assert found[:, row].tolist() == [alone(step[row : row + 1])[0] for step in steps]
    assert len({tuple(column) for column in found.t().tolist()}) == 5


@pytest.mark.parametrize(
    "bad",
    [
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": "x"},
        {"temperature": None},
        {"temperature": float("nan")},
        {"top_k": 2.5},
        {"top_p": True},
        {"seed": -1},
    ],
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=rf"{next(iter(bad))} must"):
        Sampling(**bad)
