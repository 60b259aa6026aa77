"""Every parameter has one component, and trains or stays as the policy says."""

import pytest
import torch

from vlmkit.build import build, build_model, compose_config, options_of
from vlmkit.errors import ConfigError
from vlmkit.training.policy import TrainingPolicy, components_of

RATES = dict.fromkeys(
    ("vision", "merger", "fusion", "embedding", "decoder", "router", "experts", "head"), 1e-3
)


@pytest.mark.parametrize("size", options_of("model"))
def test_every_parameter_of_every_size_has_a_component(size):
    model = build_model(f"model={size}", device="meta")
    components = components_of(model)
    assert set(components) == {name for name, _ in model.named_parameters()}
    experts = {name for name, part in components.items() if part in ("router", "experts")}
    assert bool(experts) == (size.endswith(("moe", "a3b", "a22b")))
    assert all(".feed_forward." in name for name in experts)
    assert ("head" in components.values()) == (model.decoder.head is not None)


def test_a_parameter_of_nobody_is_an_error():
    model = build_model("model=qwen3vl_tiny", device="meta")
    model.extra = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(ConfigError, match=r"extra\.weight belongs to none"):
        components_of(model)


def test_stage_zero_trains_mergers_only():
    model = build_model("model=qwen3vl_tiny", device="meta")
    rates = dict.fromkeys(RATES)
    policy = TrainingPolicy(rates | {"merger": 1e-3, "fusion": 2e-3}, weight_decay=0.1)
    policy.freeze(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in model.named_parameters() if name.startswith(("merger.", "fusion."))
    }
    rates = {group["component"]: group["lr"] for group in policy.groups(model)}
    assert rates == {"merger": 1e-3, "fusion": 2e-3}
    lines = {line.component: line for line in policy.summary(model)}
    assert lines["vision"].num_trained == 0
    assert lines["merger"].num_trained == lines["merger"].num_parameters
    assert "router" not in lines


def test_weight_decay_spares_norms_biases_and_embeddings():
    model = build_model("model=qwen3vl_tiny", device="meta")
    policy = TrainingPolicy(RATES, weight_decay=0.1)
    policy.freeze(model)
    groups = policy.groups(model)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    decayed = {name for group in groups if group["weight_decay"] for name, _ in group["params"]}
    assert "decoder.layers.0.attention.q_proj.weight" in decayed
    assert "decoder.embedding.weight" not in decayed
    assert not any("norm" in name or name.endswith("bias") for name in decayed)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (RATES | {"brain": 1e-3}, "learning_rates.brain"),
        ({"decoder": 1e-3}, "learning_rates.embedding is missing"),
    ],
)
def test_names_that_do_not_fit_are_refused(rates, words):
    with pytest.raises(ConfigError, match=words):
        TrainingPolicy(rates).freeze(build_model("model=qwen3vl_tiny", device="meta"))


def test_a_policy_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing would be trained"):
        TrainingPolicy(dict.fromkeys(RATES))


def test_the_command_line_freezes_by_null():
    config = compose_config("model=qwen3vl_tiny", "learning_rates.vision=null", "optim.lr=0.5")
    policy = build(config.weight_update.policy)
    assert policy.learning_rates["vision"] is None
    assert policy.learning_rates["merger"] == 0.5
