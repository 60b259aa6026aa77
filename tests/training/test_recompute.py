"""Activation checkpointing: gradients equal to the bit, less memory kept, blocks chosen."""

from copy import deepcopy

import pytest
import torch

from tests.training.test_compilation import gradients
from vlmkit.build import build_model
from vlmkit.errors import ConfigError
from vlmkit.training.blocks import decoder_layers, vision_blocks
from vlmkit.training.compilation import BlockCompiler
from vlmkit.training.recompute import BlockRecompute


def saved_bytes(model, batch) -> int:
    """What autograd keeps for the backward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = model(batch)
    del output
    return sum(storages.values())


@pytest.mark.parametrize("size", ["tiny_model", "tiny_moe"])
@pytest.mark.parametrize("every", [(1, 1), (2, 0), (0, 1)])
def test_gradients_are_equal_to_the_bit(size, every, tiny_batch, request):
    reference = request.getfixturevalue(size)
    model = deepcopy(reference)
    BlockRecompute(*every)(model)
    assert list(model.state_dict()) == list(reference.state_dict())
    expected, got = gradients(reference, tiny_batch), gradients(model, tiny_batch)
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_less_is_kept(tiny_model, tiny_batch):
    kept = {}
    for every in ((1, 1), (2, 2), (1, 0), (0, 1)):
        model = deepcopy(tiny_model)
        BlockRecompute(*every)(model)
        kept[every] = saved_bytes(model, tiny_batch)
    whole = saved_bytes(deepcopy(tiny_model), tiny_batch)
    assert kept[1, 1] < kept[2, 2] < whole
    assert kept[1, 1] < kept[1, 0] < whole
    assert kept[1, 1] < kept[0, 1] < whole


def test_with_compiled_blocks(tiny_model, tiny_batch):
    torch._dynamo.reset()
    model = deepcopy(tiny_model)
    BlockCompiler(backend="aot_eager")(model)
    BlockRecompute()(model)
    expected, got = gradients(deepcopy(tiny_model), tiny_batch), gradients(model, tiny_batch)
    for name, grad in expected.items():
        worst = float((got[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-6))
        assert worst < 1e-5, (name, worst)  # measured 5.6e-7
    torch._dynamo.reset()


def test_every_encoder_has_its_blocks_found():
    for vision in ("siglip2_tiny", "timm_vit"):
        model = build_model("model=qwen3vl_tiny", f"vision={vision}", "fusion=none", device="meta")
        assert len(vision_blocks(model)) == model.vision.depth
        assert len(decoder_layers(model)) == model.decoder.num_layers


def test_bad_numbers_are_refused():
    with pytest.raises(ConfigError, match="recompute=none turns it off"):
        BlockRecompute(0, 0)
    with pytest.raises(ConfigError, match="1 is every block"):
        BlockRecompute(-1, 1)
