"""FLOPs by definition, against what torch counts while a step runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.samples import (
    PAD_ID,
    example,
    image_example,
    picture,
    text,
    text_example,
    video_example,
)
from vlmkit.batch import VLMBatch
from vlmkit.build import build_model
from vlmkit.data.collate import collate
from vlmkit.language.moe import MixtureOfExperts
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.weighting import TokenWeighting
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.meters.flops import ModelFlops, flops_of, flops_per_token
from vlmkit.training.meters.work import Work, sample_lengths, work_of, work_per_token

STAGES = {  # parts that train
    "all": [""],
    "merger and fusion": ["merger.", "fusion."],
    "merger": ["merger."],
    "decoder": ["decoder."],
    "frozen embedding": ["vision.", "merger.", "fusion.", "decoder.layers.", "decoder.norm."],
    "vision": ["vision."],
    "router": ["router."],
    "experts": ["gate_up_proj", "experts_down"],
    "nothing": [],
}


def grouped_mm_flop(x, weight, *rest, out_shape=None, **options) -> int:
    """2 * rows * k * n forward; the gradient of the weight is (k, rows) x (rows, n)."""
    if len(weight) == 3:
        return 2 * x[0] * weight[1] * weight[2]
    return 2 * x[0] * x[1] * weight[1]


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """torch's counter; attention as plain matmuls, so that its backward is not counted with recompute."""
    formulas = {torch.ops.aten._grouped_mm: grouped_mm_flop}
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=formulas) as counter,
    ):
        yield counter


def random_batch(seed: int, padded: bool = False) -> VLMBatch:
    rng = random.Random(seed)
    row = [
        text_example(seed, question=rng.randint(3, 20), answer=rng.randint(1, 9)),
        image_example(seed + 1, rows=rng.randint(1, 3), columns=rng.randint(1, 4)),
        video_example(seed + 2),
        text_example(seed + 3, answer=rng.randint(2, 5)),
    ]
    rng.shuffle(row)
    return collate([row], pad_id=PAD_ID, merge_size=2, row_tokens=256 if padded else None)


def train_only(model: Qwen3VL, parts: list[str]) -> None:
    for name, parameter in model.named_parameters():
        name = name.replace("experts.down_proj", "experts_down")
        parameter.requires_grad_(any(part in name for part in parts))


def routing_statistics(model: Qwen3VL, batch: VLMBatch) -> int:
    """A sum over tokens that the counter sees as a product of a vector and a matrix."""
    experts = (m.num_experts for m in model.modules() if isinstance(m, MixtureOfExperts))
    return sum(2 * batch.num_tokens * number for number in experts)


def unmasked(work: Work) -> Work:
    """The work that torch counts: as if queries met all keys."""
    return replace(work, causal_pairs=2 * work.causal_pairs)


@pytest.mark.parametrize("size", ["qwen3vl_tiny", "qwen3vl_tiny_moe"])
@pytest.mark.parametrize("stage", STAGES)
def test_flops_are_those_that_torch_counts(size, stage):
    model = build_model(f"model={size}", "size.num_layers=3")
    batch = random_batch(len(stage))
    loss = CrossEntropy(TokenWeighting(0.0))
    train_only(model, [])
    with counting() as forward:
        loss(model(batch).hidden, model.decoder.head_weight, batch)
    train_only(model, STAGES[stage])
    flops = ModelFlops(model).of(unmasked(work_of(batch)))
    statistics = routing_statistics(model, batch)
    assert forward.get_total_flops() == sum(flops.forward.values()) + statistics

    with counting() as whole:
        numerator = loss(model(batch).hidden, model.decoder.head_weight, batch).numerator
        if numerator.requires_grad:
            numerator.backward()
    assert whole.get_total_flops() == flops.total + statistics


def test_frozen_parts_before_everything_trained_have_no_backward():
    model = build_model("model=qwen3vl_tiny", device="meta")
    names = {name for name, _ in model.named_parameters() if name.startswith("decoder.")}
    flops = flops_of(model, random_batch(0), names)
    assert flops.backward["vision"] == flops.backward["merger"] == flops.backward["fusion"] == 0
    assert flops.forward["vision"] > 0
    # on the way back to the merger, the frozen decoder owes activations only; attention owes two
    merger = flops_of(
        model, random_batch(0), {n for n, _ in model.named_parameters() if "merger" in n}
    )
    forward, backward = merger.forward["decoder"], merger.backward["decoder"]
    pairs = work_of(random_batch(0)).causal_pairs
    assert backward == forward + 2 * 2 * pairs * (4 * 16) * model.decoder.num_layers


@pytest.mark.parametrize(
    ("name", "dim"), [("vit_tiny_patch16_224", 192), ("vit_small_patch16_dinov3", 384)]
)
def test_timm_encoders_count_their_extra_tokens(name, dim):
    options = ", img_size: 32" if name.endswith("224") else ""
    model = build_model(
        "model=qwen3vl_tiny", "vision=timm_vit", f"vision.model_name={name}",
        f"+vision.model_kwargs={{depth: 2{options}}}", f"size.vision_dim={dim}", "fusion=none",
    )  # fmt: skip
    batch = random_batch(3)
    with counting() as counter:
        model.vision(batch.vision).last.sum().backward()
    flops = flops_of(model, batch)
    assert counter.get_total_flops() == flops.forward["vision"] + flops.backward["vision"]


def test_padding_is_no_work():
    model = ModelFlops(build_model("model=qwen3vl_tiny", device="meta"))
    assert work_of(random_batch(1, padded=True)) == work_of(random_batch(1))
    rows = [
        [text_example(0, 5, 4)],
        [text_example(1, 9, 8), image_example(2)],
        [text_example(3, 2, 2), text_example(4, 1, 3)],
    ]
    batch = collate(rows, pad_id=PAD_ID, merge_size=2)
    assert sample_lengths(batch) == [e.num_tokens for row in rows for e in row]
    alone = [collate([row], pad_id=PAD_ID, merge_size=2) for row in rows]
    assert model.total(work_of(batch)) == sum(model.total(work_of(one)) for one in alone)


def test_a_batch_without_pictures_does_not_count_the_blank_one():
    model = build_model("model=qwen3vl_tiny", device="meta")
    batch = collate([[text_example(0)]], pad_id=PAD_ID, merge_size=2)
    assert flops_of(model, batch).forward["vision"] == 0


def test_no_tensor_is_read():
    model = build_model("model=qwen3vl_tiny_moe", device="meta")
    batch = random_batch(5, padded=True)
    on_meta = replace(batch.to("meta"), segments=batch.segments)
    assert flops_of(model, on_meta) == flops_of(model, batch)


def test_planning_agrees_with_a_batch_of_that_kind():
    model = build_model("model=qwen3vl_tiny", device="meta")
    frame = [text(0, 10), picture(4, 8), text(1, 22, scored=True)]  # 64 tokens, 32 of them visual
    batch = collate(
        [[example(frame, [(1, 8, 16)], i) for i in range(4)]], pad_id=PAD_ID, merge_size=2
    )
    scored = len(batch.scored_index) / batch.num_tokens
    planned = flops_per_token(model, 64, 0.5, scored, frame_tokens=32)
    whole = flops_of(model, batch)
    for component, count in whole.forward.items():
        assert planned.forward[component] * batch.num_tokens == pytest.approx(count, rel=1e-12)
    assert planned.total * batch.num_tokens == pytest.approx(whole.total, rel=1e-12)


def test_published_size_is_near_six_per_parameter():
    model = build_model("model=qwen3vl_8b", device="meta")
    work = work_per_token(
        row_tokens=8192, visual_share=0, scored_share=1, frame_tokens=256, merge_size=2
    )
    flops = ModelFlops(model).of(work)
    parts = (*model.decoder.layers.values(), model.decoder.head)
    matrices = sum(p.numel() for part in parts for p in part.parameters() if p.ndim > 1)
    attention = 6 * 8192 * 32 * 128 * 36  # PaLM's 12 L H Q T, halved
    assert flops.total == 6 * matrices + attention
