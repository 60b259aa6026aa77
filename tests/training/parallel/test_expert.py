"""Ranks that have experts each take the steps of one process."""

from __future__ import annotations

import faulthandler
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from tests.samples import image_example, text_example, two_images_example, video_example
from tests.training.parallel.test_pipeline import (
    DENSE,
    EXPERTS,
    LOSSES,
    difference,
    fit,
    numbers,
)
from tests.training.ranks import run_on_ranks
from vlmkit.build import build_model
from vlmkit.errors import ConfigError
from vlmkit.language.moe import Experts
from vlmkit.training.component_digests import component_digests
from vlmkit.training.parallel.expert import ExpertExchange, check
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.whole import whole_state
from vlmkit.training.recompute import BlockRecompute

# rows of the micro-batches of four shares of a step: uneven in number, kind, length; packed; the last is text
SHARES = [
    [[[text_example(0, answer=9), image_example(1)], [text_example(10)]], [[text_example(4)]]],
    [[[two_images_example(2)]], [[text_example(6, answer=2), text_example(12)]]],
    [[[video_example(3), image_example(5, answer=7)]], [[text_example(8)]], [[text_example(11)]]],
    [[[text_example(7, answer=5)]], [[text_example(9), text_example(13)]]],
]
LAYOUTS: dict[str, dict[str, int]] = {
    "ep4": {"shard": 4, "expert": 4},
    "ep2_fsdp2_recomputed": {"shard": 4, "expert": 2},
    "ep2_hsdp": {"replicate": 2, "shard": 2, "expert": 2, "zero": 2},
    "ep4_cp2": {"context": 2, "shard": 2, "expert": 4, "zero": 1},
    "ep2_tp2": {"tensor": 2, "shard": 2, "expert": 2},
}
STEPS, LAYERS = 3, 2


def compare(folder: Path) -> None:
    """Write what each layout has found."""
    faulthandler.dump_traceback_later(200, exit=True)
    dist.init_process_group("gloo")
    exchange()
    found = {}
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        loss = LOSSES[number % 3]
        changes = [BlockRecompute()] if name.endswith("recomputed") else []
        trainer, module, gradient = fit(
            loss, layout, STEPS, model=EXPERTS, shares=SHARES, num_layers=LAYERS, changes=changes
        )
        digests = component_digests(module.model)
        found[name] = (loss, numbers(trainer), whole_state(module.model), gradient, digests)
    torch.save(found, folder / f"found{dist.get_rank()}.pt")
    dist.destroy_process_group()


def exchange() -> None:
    """Experts of one rank, of many, or of none are chosen: outputs and gradients are those of one process."""
    rank, ranks, each = dist.get_rank(), dist.get_world_size(), 2
    torch.manual_seed(0)
    whole = Experts(8, 6, ranks * each)
    whole.reset_parameters()
    everyone = torch.zeros(ranks, ranks * each, dtype=torch.int32)
    everyone[:, 1] = 3  # all send to the first rank's second expert alone ...
    everyone[2, 5:] = torch.arange(len(everyone[2, 5:]))  # ... but one
    rows = torch.randn(int(everyone.sum()), 8)
    parts = list(rows.split(everyone.sum(1).tolist()))
    weights = torch.randn_like(rows)
    cotangents = list(weights.split(everyone.sum(1).tolist()))
    for where in parts:
        where.requires_grad_()
    expected = [whole(part, counts) for part, counts in zip(parts, everyone, strict=True)]
    torch.autograd.backward(expected, cotangents)
    own = Experts(8, 6, each)
    for name, parameter in own.named_parameters():
        with torch.no_grad():
            parameter.copy_(getattr(whole, name)[rank * each :][:each])
    mine = parts[rank].detach().requires_grad_()
    own.forward = ExpertExchange(own, dist.group.WORLD)
    out = own(mine, everyone[rank])
    out.backward(cotangents[rank])
    torch.testing.assert_close(out, expected[rank], rtol=0, atol=1e-6)
    torch.testing.assert_close(mine.grad, parts[rank].grad, rtol=0, atol=1e-6)
    for name, parameter in own.named_parameters():
        share = getattr(whole, name).grad[rank * each :][:each]
        torch.testing.assert_close(parameter.grad, share, rtol=0, atol=1e-6)


@pytest.mark.distributed
def test_ranks_that_have_experts_each_equal_one_process(tmp_path):
    target = "tests.training.parallel.test_expert:compare"
    for done in run_on_ranks(target, 4, tmp_path):
        assert done.returncode == 0, done.stderr[-4000:]
    alone: dict[str, Any] = {}
    found = [torch.load(tmp_path / f"found{rank}.pt", weights_only=False) for rank in range(4)]
    for name, (loss, metrics, weights, gradient, digests) in found[0].items():
        if loss not in alone:
            trainer, module, first = fit(
                loss, None, STEPS, model=EXPERTS, shares=SHARES, num_layers=LAYERS
            )
            alone[loss] = (numbers(trainer), module.model.state_dict(), first)
        expected, state, expected_gradient = alone[loss]
        assert weights.keys() == state.keys()
        assert gradient.keys() == expected_gradient.keys()
        worst = difference(weights, state), difference(gradient, expected_gradient)
        print(name, worst, json.dumps({k: v / (expected[k] or 1) - 1 for k, v in metrics.items()}))
        # measured: weights 1.2e-7, gradients 2.6e-8, numbers of the log 4.3e-6 of themselves
        assert max(worst) < 2e-6, (name, worst)
        for key, value in metrics.items():
            expected_value = pytest.approx(expected[key], rel=1e-5, abs=1e-6, nan_ok=True)
            assert value == expected_value, (name, key)
        assert all(of_rank[name][4] == digests for of_rank in found)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (DENSE, {"shard": 2, "expert": 2}, "parallel.expert=2: the model has no experts"),
        (EXPERTS, {"shard": 3, "expert": 3}, "parallel.expert=3 must divide num_experts=8"),
        (EXPERTS, {"tensor": 7}, "the 7 ranks with the same experts .* divide none of the sides"),
    ],
)
def test_what_cannot_be_divided_is_refused(model, sizes, message):
    whole = build_model(f"model={model}", device="meta")
    with pytest.raises(ConfigError, match=message):
        check(whole, Layout(**sizes))


def test_adapted_experts_are_refused():
    model = build_model(f"model={EXPERTS}", device="meta")
    model.decoder.layers["1"].feed_forward.experts = nn.Identity()
    with pytest.raises(ConfigError, match=r"parallel.expert=2 with LoRA on the experts of layer 1"):
        check(model, Layout(shard=2, expert=2))
