"""Muon against torch's, the division of parameters, unbiased rounding, resuming."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from vlmkit.build import build, build_model, compose_config, options_of
from vlmkit.errors import ConfigError
from vlmkit.training.optimizers import (
    Muon,
    MuonAdamW,
    StochasticAdamW,
    orthogonalize,
    round_stochastically,
)
from vlmkit.training.policy import TrainingPolicy
from vlmkit.training.schedules import Cosine, WarmupSchedule

SHAPES = [(24, 40), (40, 24), (16, 16)]


def parameters(shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def descend(optimizer, steps, first=0):
    """Follow random gradients, the same ones for the same step."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                grad = torch.randn(parameter.shape, generator=generator)
                parameter.grad = grad.to(parameter.dtype)
        optimizer.step()


def test_muon_is_torchs_muon():
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    descend(Muon(ours, lr=0.01, weight_decay=0.1), 4)
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    descend(reference, 4)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # measured 0.0


def test_a_stack_of_matrices_is_each_matrix_by_itself():
    stack = torch.randn(5, 12, 20, generator=torch.Generator().manual_seed(0))
    together, alone = orthogonalize(stack, 5), torch.stack([orthogonalize(x, 5) for x in stack])
    assert torch.equal(together, alone)
    values = torch.linalg.svdvals(together.float())
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.4  # measured 0.68 and 1.14


def muon_for(model, **rest):
    groups = TrainingPolicy(dict.fromkeys(model.components, 0.001), 0.1).groups(model)
    config = compose_config("model=qwen3vl_tiny", "optim=muon")
    return build(config.optim.optimizer)(groups, **rest)


@pytest.mark.parametrize("size", ["qwen3vl_tiny", "qwen3vl_tiny_moe"])
def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw(size):
    optimizer = muon_for(build_model(f"model={size}"))
    muon, adamw = (
        {name for group in part.param_groups for name in group["param_names"]}
        for part in optimizer._parts
    )
    for name in (
        "decoder.layers.0.attention.q_proj.weight",
        "vision.patch_embed.weight",
        "vision.blocks.0.attention.qkv.weight",
        "merger.fc1.weight",
        "fusion.mergers.0.fc1.weight",
    ):
        assert name in muon
    for name in ("decoder.embedding.weight", "vision.position_table.weight"):
        assert name in adamw
    assert not any("norm" in name or name.endswith("bias") for name in muon)
    if size.endswith("moe"):
        assert "decoder.layers.0.feed_forward.experts.gate_up_proj" in muon
        assert "decoder.layers.0.feed_forward.router.weight" in adamw


def test_muon_and_adamw_are_one_optimizer():
    """Schedule and state reach both halves, and a resumed run is the run that never stopped."""

    def make():
        torch.manual_seed(0)
        model = build_model("model=qwen3vl_tiny")
        optimizer = muon_for(model)
        return model, optimizer, WarmupSchedule(optimizer, total_steps=10, shape=Cosine())

    def run(optimizer, schedule, steps, first=0):
        for step in range(first, first + steps):
            descend(optimizer, 1, first=step)
            schedule.step()

    whole, optimizer, schedule = make()
    run(optimizer, schedule, 4)
    assert {group["lr"] for group in optimizer.param_groups} == {
        group["lr"] for part in optimizer._parts for group in part.param_groups
    }
    assert optimizer.param_groups[0]["lr"] < 1e-3

    first, optimizer, schedule = make()
    run(optimizer, schedule, 2)
    saved = optimizer.state_dict()
    assert all("param_names" in group for group in saved["param_groups"])
    second, resumed, rest = make()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(saved)
    rest.load_state_dict(schedule.state_dict())
    run(resumed, rest, 2, first=2)
    for (name, a), b in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    resumed.zero_grad()
    assert all(parameter.grad is None for parameter in second.parameters())


def test_muon_says_what_it_needs():
    (matrix,) = parameters([(4, 4)])
    with pytest.raises(ConfigError, match="groups of named parameters with a `component`"):
        MuonAdamW([{"params": [matrix]}], matrix_components=["decoder"])
    with pytest.raises(ConfigError, match=r"for matrices, got a shape \(3,\)"):
        Muon(parameters([(3,)]))


@pytest.mark.distributed
def test_sharded_parameters_are_refused(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = torch.nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
        for make in (Muon, StochasticAdamW):
            with pytest.raises(ConfigError, match="these are sharded: use optim=adamw"):
                make([sharded])
    finally:
        torch.distributed.destroy_process_group()


def test_rounding_is_unbiased_and_to_a_neighbour():
    exact = torch.tensor([1.0 + 0.3 * 2**-7, -3.1, 1e-30, 0.0, 257.0])
    generator = torch.Generator().manual_seed(0)
    rounded = round_stochastically(exact.expand(40_000, -1).contiguous(), generator).float()
    spacing = exact.abs() * 2**-7
    assert bool(((rounded - exact).abs() <= spacing).all())
    # the mean of 40,000 draws is within 4 standard errors, spacing / 2 / 200 each; measured 2.3
    assert bool(((rounded.mean(0) - exact).abs() <= 4 * spacing / 400).all())
    special = torch.tensor([float("inf"), -float("inf"), float("nan")])
    kept = round_stochastically(special, generator)
    assert torch.equal(kept.isfinite(), torch.zeros(3, dtype=torch.bool))
    assert kept[2].isnan()


def test_without_bfloat16_it_is_adamw():
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    rest = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1}
    descend(StochasticAdamW(ours, **rest), 5)
    descend(torch.optim.AdamW(theirs, **rest), 5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # measured 1.2e-7


def test_small_steps_move_bfloat16_weights_by_the_right_mean():
    """At lr 1e-4 a weight of 1 moves by 1e-4 a step, and bfloat16 knows nothing between 0.996 and 1."""

    def moved(make):
        weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = make([weight], lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
        for _ in range(20):
            weight.grad = torch.full_like(weight, 0.5)
            optimizer.step()
        return weight.detach().float(), optimizer.state[weight]["exp_avg_sq"].float()

    nearest, _ = moved(torch.optim.AdamW)
    assert torch.equal(nearest, torch.ones(4096))
    stochastic, square = moved(StochasticAdamW)
    # 20 steps of 1e-4; a standard error of 4e-5 over the 4096 weights; measured -2.016e-3
    assert float((stochastic - 1).mean()) == pytest.approx(-2e-3, abs=1.6e-4)
    expected = 0.25 * (1 - 0.999**20)
    assert float(square.mean()) == pytest.approx(expected, rel=0.01)  # measured 6e-5


def test_stochastic_rounding_resumes_bit_for_bit():
    def make():
        return StochasticAdamW(parameters(SHAPES, dtype=torch.bfloat16), lr=1e-2, seed=3)

    def weights(optimizer):
        return optimizer.param_groups[0]["params"]

    whole, first, second = make(), make(), make()
    descend(whole, 6)
    descend(first, 3)
    torch.manual_seed(123)  # what else draws random numbers must not matter
    with torch.no_grad():
        for a, b in zip(weights(first), weights(second), strict=True):
            b.copy_(a)
    second.load_state_dict(first.state_dict())
    descend(second, 3, first=3)
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(a, b)
    other = StochasticAdamW(parameters(SHAPES, dtype=torch.bfloat16), lr=1e-2, seed=4)
    descend(other, 6)
    assert not torch.equal(weights(whole)[0], weights(other)[0])


@pytest.mark.parametrize("name", options_of("optim"))
def test_every_option_lowers_a_loss(name):
    config = compose_config("model=qwen3vl_tiny", f"optim={name}", "optim.lr=0.02")
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8).to(torch.bfloat16 if name == "adamw_bf16" else torch.float32)
    target = torch.randn(64, 8).to(layer.weight.dtype)
    inputs = torch.randn(64, 8).to(layer.weight.dtype)
    groups = [{"params": list(layer.named_parameters()), "component": "decoder", "lr": 0.02}]
    optimizer = build(config.optim.optimizer)(groups, weight_decay=config.optim.weight_decay)
    losses = []
    for _ in range(20):
        loss = (layer(inputs) - target).square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]
