"""Frozen stays, trained moves, and each parameter is one or the other."""

import torch

from tests.training.self_checks.contexts import TALKS, context, run
from vlmkit.training.self_checks.base import Status
from vlmkit.training.self_checks.parameters import (
    ComponentPartition,
    FrozenUnchanged,
    TrainedMoves,
    content_hashes,
)


def frozen_vision():
    where = context(talks=TALKS[2:])
    where.model.vision.requires_grad_(False)
    return where


def nudge(parameter, amount=0.0):
    with torch.no_grad():
        flat = parameter.view(-1)
        flat[3] = (
            torch.nextafter(flat[3], torch.tensor(torch.inf)) if not amount else flat[3] + amount
        )


def test_components_part_the_model():
    where = frozen_vision()
    result = run(ComponentPartition(), where)
    assert result.passed
    assert "frozen: vision" in result.detail
    where.model.vision.patch_embed.bias.requires_grad_(True)
    result = run(ComponentPartition(), where)
    assert not result.passed
    assert "vision is frozen in part" in result.detail


def test_a_parameter_of_no_component_or_of_two_names_is_found():
    where = context(talks=TALKS[2:])
    where.model.extra = torch.nn.Linear(2, 2)
    assert "extra.weight" in run(ComponentPartition(), where).detail
    del where.model.extra
    assert run(ComponentPartition(), where).passed
    where.model.decoder.norm.weight = where.model.decoder.layers["0"].attention_norm.weight
    assert "under another name" in run(ComponentPartition(), where).detail


def test_adapters_may_train_in_a_frozen_component():
    where = frozen_vision()
    layer = where.model.vision.blocks[0].mlp.fc1
    layer.lora_A = torch.nn.Linear(32, 2, bias=False)
    result = run(ComponentPartition(), where)
    assert result.passed
    assert "vision is frozen in part" in result.detail


def test_one_bit_of_a_frozen_weight_is_found():
    where = frozen_vision()
    check = FrozenUnchanged()
    assert "hashed" in run(check, where).detail
    assert run(check, where, step=5).status is Status.PASSED
    nudge(where.model.vision.blocks[1].mlp.fc1.weight)
    result = run(check, where, step=10)
    assert not result.passed
    assert "vision.blocks.1.mlp.fc1.weight has changed" in result.detail


def test_hashing_takes_turns_and_is_complete_at_the_end():
    where = frozen_vision()
    bounded = FrozenUnchanged(bytes_per_run=1)
    run(bounded, where)
    count = sum(1 for _ in where.model.vision.parameters())
    nudge(list(where.model.vision.parameters())[-1])
    found = [run(bounded, where, step=i).passed for i in range(1, count + 1)]
    assert found.count(False) == 1
    assert not found[-1]
    assert not run(bounded, where, step=count, is_last=True).passed


def test_thawed_weights_are_found():
    where = frozen_vision()
    check = FrozenUnchanged()
    run(check, where)
    where.model.vision.requires_grad_(True)
    assert "no longer frozen" in run(check, where, step=1).detail


def test_a_trained_tensor_that_stays_is_reported():
    where = frozen_vision()
    check = TrainedMoves()
    assert run(check, where).passed
    assert run(check, where).detail == "no step was taken"
    still = where.model.decoder.norm.weight
    for parameter in where.model.parameters():
        if parameter.requires_grad and parameter is not still:
            nudge(parameter, 1e-3)
    result = run(check, where, step=1)
    assert result.status is Status.NOTICE
    assert result.detail == "decoder.norm.weight has not moved"
    nudge(still)
    assert run(check, where, step=2).status is Status.PASSED


def test_no_movement_and_no_numbers_fail():
    where = frozen_vision()
    check = TrainedMoves()
    run(check, where)
    assert run(check, where, step=1).status is Status.NOTICE  # a guard may leave the first step out
    assert not run(check, where, step=2, is_last=True).passed
    nudge(where.model.decoder.norm.weight, torch.nan)
    result = run(check, where, step=2)
    assert not result.passed
    assert "decoder.norm.weight is not finite" in result.detail


def test_hashes_see_every_bit_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        data = torch.randn(1000).to(dtype)
        changed = data.clone()
        changed.view(torch.uint8)[137] ^= 1
        swapped = data.clone().view(torch.uint8)
        swapped = swapped.roll(data.element_size()).view(dtype)
        parameters = {
            "a": data, "b": data.clone(), "c": changed, "d": swapped,
        }  # fmt: skip
        hashes = content_hashes({k: torch.nn.Parameter(v, False) for k, v in parameters.items()})
        assert hashes["a"] == hashes["b"]
        assert len(set(hashes.values())) == 3
