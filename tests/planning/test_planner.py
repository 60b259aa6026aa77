"""Plans that can be checked by hand, and what a search makes of them."""

from __future__ import annotations

import time

import pytest
import torch

from tests.planning.devices import CPU
from vlmkit.build import build, build_model, compose_config, options_of
from vlmkit.errors import ConfigError
from vlmkit.plan import planner_for
from vlmkit.planning.device import Device
from vlmkit.planning.parts import parts_of
from vlmkit.planning.search import layouts, search
from vlmkit.planning.state import moment_bytes
from vlmkit.training.parallel.layout import Layout

RECOMMENDED = {
    "recommended_8b": ("qwen3vl_8b", 8),
    "recommended_32b": ("qwen3vl_32b", 16),
    "recommended_30b_a3b": ("qwen3vl_30b_a3b", 16),
    "recommended_235b_a22b": ("qwen3vl_235b_a22b", 256),
    "recommended_10k": ("qwen3vl_235b_a22b", 10_240),
}


def config_of(model: str, *overrides: str):
    return compose_config(
        f"model={model}", "stage=s1_multimodal", "data_root=none", "planning.samples=0",
        "precision=bf16_mixed", "recompute=blocks", *overrides, config_name="plan",
    )  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), RECOMMENDED.items())
def test_recommended_layouts_fit(name, expected):
    model, ranks = expected
    config = config_of(model, f"parallel={name}")
    planner, layout = planner_for(config), build(config.parallel)
    assert layout.world_size == ranks
    plan = planner.plan(layout)
    assert plan.fits


def test_the_state_of_235b_is_what_one_can_reckon():
    planner = planner_for(config_of("qwen3vl_235b_a22b"))
    plan = planner.plan(Layout(shard=256, expert=4))
    parameters = 235_670_022_896
    assert plan.memory.parameters == pytest.approx(parameters / 256)
    # float32 weights, and two float32 moments
    assert plan.memory.lines["weights"] == pytest.approx(parameters * 4 / 256)
    assert plan.memory.lines["moments"] == pytest.approx(parameters * 8 / 256)
    # each unit is gathered twice in each of two micro-batches, in bfloat16; of experts a quarter
    experts = 94 * 128 * 3 * 4096 * 1536
    (gathers,) = [t for t in plan.traffic if t.axis == "shard" and t.kind == "all-gather"]
    assert gathers.payload == pytest.approx(4 * 2 * (parameters - experts))
    assert gathers.calls == 4 * (94 + 27 + 2)
    (gathers,) = [t for t in plan.traffic if t.axis == "expert_shard" and t.kind == "all-gather"]
    assert gathers.payload == pytest.approx(4 * 2 * experts / 4)
    assert (gathers.calls, gathers.ranks) == (4 * 94, 64)
    # tokens go to their experts and back, forward and backward: 8 of them each, 8192 tokens a row
    (exchange,) = [t for t in plan.traffic if t.axis == "expert"]
    assert exchange.payload == 2 * 94 * (4 * 8192 * 8 * 4096 * 2 + 128 * 4)  # and their numbers
    assert plan.flops.forward["experts"] == 2 * 8192 * 94 * 8 * 3 * 4096 * 1536


def test_parts_add_up_to_the_model():
    for size in ("qwen3vl_tiny", "qwen3vl_tiny_moe"):
        model = build_model(f"model={size}", device="meta")
        line = parts_of(model, Layout(zero=0))
        tied = model.decoder.embedding.weight.numel() if model.decoder.head is None else 0
        assert sum(part.numel for part in line) - tied == sum(p.numel() for p in model.parameters())


def test_a_search_ranks_what_fits_and_says_what_does_not():
    planner = planner_for(config_of("qwen3vl_8b"))
    begin = time.process_time()
    found = search(planner, 8)
    assert time.process_time() - begin < 20  # measured: 1.9 s
    speeds = [plan.tokens_per_s for plan in found.fitting]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds
    assert all(not plan.fits for plan in found.too_large)
    assert found.compared > len(found.fitting) + len(found.too_large)


def test_a_search_finds_the_fastest_of_all():
    """Though it traces the memory of a few only."""
    planner = planner_for(config_of("qwen3vl_8b"))
    bounds = {"most_tensor": 2, "most_context": 2, "most_pipeline": 2, "most_expert": 1}
    every = []
    for layout in layouts(8, **bounds):
        assert planner.least_bytes(layout) <= planner.plan(layout).memory.total
        every.append(planner.plan(layout))
    best = max((plan for plan in every if plan.fits), key=lambda plan: plan.tokens_per_s)
    found = search(planner, 8, **bounds)
    assert found.fitting[0].tokens_per_s == pytest.approx(best.tokens_per_s, rel=1e-3)


def test_all_layouts_of_a_search_have_its_ranks():
    made = [
        *layouts(16, most_tensor=8, most_context=4, most_pipeline=4, most_expert=4),
        *layouts(24, most_tensor=8, most_context=4, most_pipeline=4, most_expert=4),
    ]
    assert {layout.world_size for layout in made} == {16, 24}
    assert len(set(made)) == len(made)


def test_what_does_not_divide_is_refused():
    planner = planner_for(config_of("qwen3vl_235b_a22b"))
    with pytest.raises(ConfigError, match=r"parallel.tensor=8 must divide language num_kv_heads=4"):
        planner.plan(Layout(tensor=8))
    with pytest.raises(ConfigError, match=r"parallel.expert=3 must divide num_experts=128"):
        planner.plan(Layout(shard=3, expert=3))
    with pytest.raises(ConfigError, match=r"gpu.achievable is 1.5"):
        Device(**{**vars(CPU), "achievable": 1.5})


@pytest.mark.parametrize(
    ("optim", "dtype", "expected"),
    [("adamw", torch.float32, 8), ("adamw", torch.bfloat16, 4), ("adamw_bf16", torch.bfloat16, 4)],
)
def test_moments_are_those_of_the_optimiser(optim, dtype, expected):
    config = compose_config("model=qwen3vl_tiny", f"optim={optim}", "run_dir=none")
    model = build_model(config=config, device="meta")
    policy = build(config.weight_update.policy)
    policy.freeze(model)
    found = moment_bytes(model, policy, build(config.optim.optimizer), dtype)
    assert set(found.values()) == {expected}


def test_muon_keeps_one_moment_of_matrices():
    config = compose_config("model=qwen3vl_tiny", "optim=muon", "run_dir=none")
    model = build_model(config=config, device="meta")
    policy = build(config.weight_update.policy)
    policy.freeze(model)
    found = moment_bytes(model, policy, build(config.optim.optimizer), torch.float32)
    assert found["decoder.layers.0.attention.q_proj.weight"] == 4
    assert found["decoder.embedding.weight"] == 8


@pytest.mark.parametrize("name", options_of("gpu"))
def test_devices_compose(name):
    device = build(compose_config(f"gpu={name}", "run_dir=none").gpu)
    assert device.name.lower() == name
    assert device.bandwidth(8, 1, is_ring=True) == device.node_bandwidth_gb_s * 1e9
    # eight ports leave a node; what goes to each other rank takes one
    assert device.bandwidth(16, 1, is_ring=False) == device.network_bandwidth_gb_s * 1e9
    assert device.bandwidth(16, 1, is_ring=True) <= 8 * device.network_bandwidth_gb_s * 1e9


def test_pipeline_stages_wait_and_hold_several_micro_batches():
    planner = planner_for(config_of("qwen3vl_8b"))
    plan = planner.plan(Layout(pipeline=4, shard=2))
    whole = planner.plan(Layout(shard=8))
    assert plan.bubble_s == pytest.approx(
        3 / plan.micro_batches * (plan.compute_s + plan.exposed_s)
    )
    assert (
        plan.memory.parameters > whole.memory.parameters
    )  # of two parts of a quarter, the largest
    kept = "activations: decoder"
    assert plan.memory.lines.get(kept, 0) > 0
    assert {t.axis for t in plan.traffic} >= {"shard", "pipeline"}
