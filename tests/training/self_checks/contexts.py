"""Contexts of small runs, for tests of the checks."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import DictConfig

from tests.conftest import spread
from vlmkit.assets import asset_path
from vlmkit.build import build, build_model, compose_config
from vlmkit.data.media import ImageArray, VideoFile
from vlmkit.data.record import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    VideoPart,
)
from vlmkit.training.precision import BFloat16Precision
from vlmkit.training.self_checks.base import (
    CheckContext,
    CheckResult,
    SelfCheck,
    one_row,
    undisturbed,
)

PRECISIONS = {
    "float32": nullcontext,
    "bf16_mixed": MixedPrecision("bf16-mixed", "cpu").forward_context,
    "bf16_true": BFloat16Precision().forward_context,
}
CLIP = VideoFile(asset_path("video", "big_buck_bunny.mp4"))
FILM = VideoPart(CLIP, 0.4, 2.4)


def picture(side: int = 64, shade: int = 90) -> ImagePart:
    ramp = np.add.outer(np.arange(side), np.arange(side)) % 251
    return ImagePart(ImageArray(((ramp[..., None] + shade) % 255).repeat(3, 2).astype(np.uint8)))


def say(role: Any, *parts: Part | str, **more: Any) -> Message:
    written = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return Message(role=role, parts=written, **more)


TALKS = (
    Conversation(
        messages=(
            say("system", "Be brief."),
            say("user", picture(), "What is this?"),
            say("assistant", "Ein Übergang — 渐变 🙂."),
            say("user", "Are you sure?"),
            say("assistant", "Yes.\n\nA ramp.", tool_calls=(ToolCall("zoom", {"x": 1}),)),
        ),
        key=1,
    ),
    Conversation(
        messages=(say("user", FILM, "What happens?"), say("assistant", "A rabbit wakes up.")), key=2
    ),
    Conversation(
        messages=(say("user", "2 + 2?"), say("assistant", "4", scored=False),
                  say("user", "And 3 + 3?"), say("assistant", "6", thinking="3 + 3 is 6"),),
        key=3,
    ),
)  # fmt: skip


_MADE: dict[tuple[Any, ...], CheckContext] = {}


def context(
    *overrides: str,
    talks: tuple[Conversation, ...] = TALKS,
    precision: str = "float32",
    processor: Any = None,
) -> CheckContext:
    """A context of its own; what is slow to make is made once."""
    key = (overrides, precision, *map(id, talks))
    if processor is not None:
        return _context(overrides, talks, precision, processor)
    if key not in _MADE:
        _MADE[key] = _context(overrides, talks, precision, None)
    made = _MADE[key]
    own = copy.copy(made.processor)
    own.temporal = copy.copy(own.temporal)
    return replace(made, model=copy.deepcopy(made.model), processor=own)


def _context(
    overrides: tuple[str, ...], talks: tuple[Conversation, ...], precision: str, processor: Any
) -> CheckContext:
    torch.manual_seed(0)
    config = _composed(overrides)
    processor = processor or build(config.processor)
    model = spread(build_model(config=config))
    if precision == "bf16_true":
        model.to(torch.bfloat16)
    examples = tuple(processor(talk) for talk in talks)
    return CheckContext(
        model=model,
        loss=build(config.loss),
        processor=processor,
        examples=examples,
        packed=one_row(list(examples), processor),
        device=torch.device("cpu"),
        precision=PRECISIONS[precision],
    )


@lru_cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose_config(
        "model=qwen3vl_tiny", "run_dir=unused", "processor.video.max_pixels=49152",
        "processor.image.min_pixels=4096", *overrides,
    )  # fmt: skip


def run(check: SelfCheck, where: CheckContext, **changes: Any) -> CheckResult:
    with undisturbed(where.model):
        return check.run(replace(where, **changes))
