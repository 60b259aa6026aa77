"""Adapters: nothing changes at first, only they train, merging gives the plain model back."""

from copy import deepcopy

import pytest
import torch

from tests.training.test_compilation import gradients
from vlmkit.errors import ConfigError
from vlmkit.training.lora import LoRA, merge_lora
from vlmkit.training.recompute import BlockRecompute

pytest.importorskip("peft", reason="adapters need peft")

DENSE = {"layers": ["decoder.layers.*_proj", "vision.blocks.*.qkv"], "trained": ["merger.*"]}
MOE = {"layers": ["decoder.layers.*.?_proj"], "experts": ["*.gate_up_proj", "*.down_proj"]}
CASES = [("tiny_model", DENSE), ("tiny_moe", MOE)]


def adapted(model, **settings):
    model = deepcopy(model)
    torch.manual_seed(0)
    LoRA(rank=4, alpha=8, **settings)(model)
    return model


def disturb(model):
    """As training would: adapters away from their start at zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("size", "settings"), CASES)
def test_at_first_nothing_changes_and_only_adapters_train(size, settings, tiny_batch, request):
    reference = request.getfixturevalue(size)
    model = adapted(reference, **settings)
    with torch.no_grad():
        expected, got = reference.logits(tiny_batch), model.logits(tiny_batch)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # measured 0.0
    grads = gradients(disturb(model), tiny_batch)
    assert any("lora_A" in name for name in grads)
    if settings is DENSE:
        assert any(name.startswith("merger.") for name in grads)
    for name, grad in grads.items():
        assert "lora_" in name or name.startswith("merger."), name
        assert float(grad.abs().max()) > 0, name


@pytest.mark.parametrize(("size", "settings"), CASES)
def test_merging_gives_the_plain_model_back(size, settings, tiny_batch, request):
    reference = request.getfixturevalue(size)
    model = disturb(adapted(reference, **settings))
    with torch.no_grad():
        expected = model.logits(tiny_batch)
        merged = merge_lora(model)
        got = merged.logits(tiny_batch)
        plain = reference.logits(tiny_batch)
    assert float((expected - plain).abs().max()) > 0.1  # the adapters do something
    torch.testing.assert_close(
        got, expected, rtol=0, atol=1e-4
    )  # measured 2.8e-6 on logits up to 2.3
    assert list(merged.state_dict()) == list(reference.state_dict())
    assert {type(part) for part in merged.modules()} == {type(p) for p in reference.modules()}


@pytest.mark.parametrize(("size", "settings"), CASES)
def test_a_checkpoint_goes_into_a_model_adapted_alike(size, settings, tiny_batch, request):
    reference = request.getfixturevalue(size)
    model = disturb(adapted(reference, **settings))
    other = adapted(reference, **settings)
    other.load_state_dict(model.state_dict())
    BlockRecompute()(other)
    expected, got = gradients(model, tiny_batch), gradients(other, tiny_batch)
    assert all(torch.equal(got[name], grad) for name, grad in expected.items())


def test_adapters_stand_beside_their_layer(tiny_model):
    names = dict(adapted(tiny_model, **DENSE).named_parameters())
    assert "decoder.layers.0.attention.q_proj.lora_A.default.weight" in names
    assert names["decoder.layers.0.attention.q_proj.lora_A.default.weight"].shape[0] == 4
    assert "vision.blocks.1.attention.qkv.base_layer.weight" in names


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": []}, "both empty"),
        ({"layers": ["decoder.head"]}, "lora.layers: 'decoder.head' fits nothing"),
        ({"layers": ["decoder.layers.*.q_porj"]}, "fits nothing that can be adapted"),
        ({"layers": [], "experts": ["*.gate_up_proj"], "dropout": 0.1}, "cannot have dropout"),
        ({"layers": ["*"], "rank": 0}, "lora.rank=0 must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(settings, words, tiny_model):
    with pytest.raises(ConfigError, match=words):
        LoRA(**{"rank": 4, "alpha": 8, **settings})(deepcopy(tiny_model))
