"""Which pieces of work make up which case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from benchmarks.step.distillation import DistillationPart
from benchmarks.step.side import Part
from benchmarks.step.training import TrainingPart
from benchmarks.step.vision import VisionPart
from benchmarks.step.work import RAGGED, Sample

from vlmkit.checkpoint.parity_cases import Image, Video

WIDTH_256 = (  # published shapes with the widths cut
    "size.hidden_dim=256",
    "size.num_layers=8",
    "size.num_heads=4",
    "size.num_kv_heads=2",
    "size.head_dim=64",
    "size.mrope_section=[12,10,10]",
    "size.vision_dim=256",
    "size.deepstack_blocks=[1,3,5]",
    "vision.depth=6",
    "vision.mlp_dim=1024",
    "vision.num_heads=4",
    "vision.position_side=48",
)
FULL_VOCABULARY = ("size.vocab_ranks=151643", "size.vocab_size=151936")
SMALL_VOCABULARY = ("size.vocab_ranks=32000", "size.vocab_size=32768")
DENSE = ("model=qwen3vl_tiny", *WIDTH_256, "size.intermediate_dim=768")
EXPERTS = (
    "model=qwen3vl_tiny_moe",
    *WIDTH_256,
    "size.tie_embeddings=true",
    "size.num_experts=128",
    "size.num_active_experts=8",
    "size.expert_dim=96",
)
SIDES = (4, 6, 8, 10, 12, 14)  # visual tokens


def different_images(count: int) -> list[Image]:
    """Images of sizes as different as they can be."""
    grids = [(rows, columns) for rows in SIDES for columns in SIDES]
    return [Image(*grids[i * len(grids) // count]) for i in range(count)]


@dataclass(frozen=True)
class Goal:
    """At least this speed; at most this share of transformers' memory."""

    speed: float
    memory: float | None = None


GOALS: Mapping[str, Goal] = {  # by case, or case and part
    "realistic_sft": Goal(3.5, 0.2),
    "realistic_sft_32k/fp32": Goal(2.7),
    "realistic_sft_32k/bf16": Goal(2.3),
    "equal_work": Goal(1.05),
    "vision": Goal(1.3),
    "moe": Goal(2.5),
    "distillation": Goal(1.0, 0.5),
    "decode/decode_1": Goal(1.3),
    "decode/decode_8": Goal(1.2),
    "decode/decode_32": Goal(1.1),
    "rollout": Goal(3.0),
}

CASES: Mapping[str, Mapping[str, Part]] = {
    "realistic_sft": {"fp32": TrainingPart((*DENSE, *FULL_VOCABULARY), RAGGED)},
    "realistic_sft_32k": {
        "fp32": TrainingPart((*DENSE, *SMALL_VOCABULARY), RAGGED),
        "bf16": TrainingPart(
            (*DENSE, *SMALL_VOCABULARY), RAGGED, precision=torch.bfloat16, tolerance=0.1
        ),
    },
    "equal_work": {"fp32": TrainingPart((*DENSE, *SMALL_VOCABULARY), [Sample([1], 399)] * 4)},
    "vision": {
        "video": VisionPart(DENSE, [Video(32, 8, 8)]),  # 64 frames, two to a patch
        "images": VisionPart(DENSE, different_images(32)),
    },
    # a token between two experts may go to either, which moves a gradient by 1e-3
    "moe": {"fp32": TrainingPart((*EXPERTS, *SMALL_VOCABULARY), RAGGED, tolerance=1e-3)},
    "distillation": {"fp32": DistillationPart(1024, 151_936, 256, 512, temperature=2.0)},
}
