"""A published config.json -> overrides that compose the same model in vlmkit.

The way back is `vlmkit.checkpoint.published_config`. What vlmkit cannot do exactly as a config asks
is refused, never ignored.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmkit.checkpoint.section import Section
from vlmkit.errors import CheckpointError
from vlmkit.position.axes import HEIGHT, WIDTH
from vlmkit.sequence import QWEN_RANKS, SpecialTokens, special_tokens

log = logging.getLogger(__name__)

DEFAULT_ROPE_THETA = 500_000.0  # what transformers takes when a config states none
DEFAULT_MROPE_SECTION = (24, 20, 20)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a published `model_type` stands for."""

    architecture: str
    base: str  # option of conf/model whose numbers are all replaced
    language: str  # option of conf/language
    numbers: Mapping[str, str]  # override -> key of text_config
    default_head_dim: int | None  # None: hidden_size split among the heads


FAMILIES: Mapping[str, Family] = {
    "qwen3_vl": Family(
        architecture="Qwen3VLForConditionalGeneration",
        base="qwen3vl_8b",
        language="dense",
        numbers={"size.intermediate_dim": "intermediate_size"},
        default_head_dim=128,
    ),
    "qwen3_vl_moe": Family(
        architecture="Qwen3VLMoeForConditionalGeneration",
        base="qwen3vl_30b_a3b",
        language="moe",
        numbers={
            "size.num_active_experts": "num_experts_per_tok",
            "size.expert_dim": "moe_intermediate_size",
        },
        default_head_dim=None,
    ),
}

TEXT_NUMBERS = {
    "size.vocab_size": "vocab_size",
    "size.hidden_dim": "hidden_size",
    "size.num_layers": "num_hidden_layers",
    "size.num_heads": "num_attention_heads",
}
VISION_NUMBERS = {
    "vision.depth": "depth",
    "size.vision_dim": "hidden_size",
    "vision.mlp_dim": "intermediate_size",
    "vision.num_heads": "num_heads",
}

# Settings of which vlmkit implements one value only. A key that is absent has it.
ONLY_VALUES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "": {"quantization_config": [None]},
    "text_config": {
        "hidden_act": ["silu"],
        "attention_bias": [False],
        "attention_dropout": [0],
        "partial_rotary_factor": [1],
        "use_sliding_window": [False],
        "decoder_sparse_step": [1],
        "mlp_only_layers": [[]],
        "norm_topk_prob": [True],
    },
    "vision_config": {"hidden_act": ["gelu_pytorch_tanh"]},
}
ONLY_ROPE_VALUES: Mapping[str, Sequence[Any]] = {
    "partial_rotary_factor": [1],
    "truncate": [True],
    "mscale": [None],
    "mscale_all_dim": [None],
}
ONLY_VISION_ROPE_VALUES: Mapping[str, Sequence[Any]] = {
    "rope_theta": [10_000],
    "rope_type": ["axial", "default"],
    "partial_rotary_factor": [1],
}


def overrides_from_published(config: Mapping[str, Any]) -> list[str]:
    """The overrides that make `vlmkit.build.compose_config` state every number of a published config.

    Reads the layout of the released checkpoints and that of transformers 5.

    Args:
        config: the content of config.json.

    Raises:
        CheckpointError: a number is missing, or vlmkit cannot do what a setting asks; names the key.
    """
    top = Section(config, "")
    if (model_type := top.get("model_type")) not in FAMILIES:
        raise CheckpointError(
            f"model_type is {json.dumps(model_type)}, vlmkit reads {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    text = Section(config.get("text_config"), "text_config")
    vision = Section(config.get("vision_config"), "vision_config")
    for section in (top, text, vision):
        section.require(ONLY_VALUES[section.name])
    return [
        f"model={family.base}",
        "vision=siglip2_so400m",
        f"language={family.language}",
        f"size.tie_embeddings={_word(bool(top.get('tie_word_embeddings', False)))}",
        *_text(text, family),
        *_rope(text, family),
        *_vision(vision, text),
        *_special_tokens(top, text),
    ]


def _text(text: Section, family: Family) -> list[str]:
    numbers: dict[str, float] = {
        ours: text.count(key) for ours, key in {**TEXT_NUMBERS, **family.numbers}.items()
    }
    numbers["size.num_kv_heads"] = text.count(
        "num_key_value_heads", text.count("num_attention_heads")
    )
    numbers["size.head_dim"] = _head_dim(text, family)
    numbers["size.norm_eps"] = text.number("rms_norm_eps", 1e-6)
    if "size.num_active_experts" in numbers:  # transformers 5 renames the number of all experts
        numbers["size.num_experts"] = text.count("num_experts", text.get("num_local_experts"))
    return [f"{name}={value!r}" for name, value in numbers.items()]


def _head_dim(text: Section, family: Family) -> int:
    split = text.count("hidden_size") // text.count("num_attention_heads")
    return text.count("head_dim", family.default_head_dim or split)


def _rope(text: Section, family: Family) -> list[str]:
    """Rotary settings: `rope_scaling` beside `rope_theta`, or `rope_parameters` of transformers 5."""
    name = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
    rope = Section(text.get(name, {}), text.path(name))
    rope.require(ONLY_ROPE_VALUES)
    head_dim = _head_dim(text, family)
    theta = rope.number("rope_theta", text.number("rope_theta", DEFAULT_ROPE_THETA))
    stated = list(rope.get("mrope_section", DEFAULT_MROPE_SECTION))
    interleaved = rope.get("mrope_interleaved", True)
    section = interleaved_section(stated, head_dim) if interleaved else stated
    if section != stated:
        log.warning(
            "mrope_section %s does not divide the %d frequencies of head_dim %d; "
            "read as the released code does: %s",
            stated,
            head_dim // 2,
            head_dim,
            section,
        )
    overrides = [
        f"size.rope_theta={float(theta)!r}",
        f"size.mrope_section={section}",
        f"position={'interleaved' if interleaved else 'chunked'}",
    ]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_SCALINGS:
        raise CheckpointError(
            f"{rope.path('rope_type')} is {json.dumps(kind)}, "
            f"vlmkit supports {', '.join(_ROPE_SCALINGS)}"
        )
    return overrides + _ROPE_SCALINGS[kind](rope, text)


def _unscaled(rope: Section, text: Section) -> list[str]:
    return ["rope_scaling=none"]


def _yarn(rope: Section, text: Section) -> list[str]:
    longest = text.count("max_position_embeddings", 262_144)
    original = rope.count("original_max_position_embeddings", longest)
    factor = rope.number("factor", longest / original)
    attention_factor = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    if not math.isclose(rope.number("attention_factor", attention_factor), attention_factor):
        raise CheckpointError(
            f"{rope.path('attention_factor')} is {rope.get('attention_factor')}, vlmkit supports only "
            f"YaRN's own, {attention_factor:.4f} for factor {factor}"
        )
    return [
        "rope_scaling=yarn",
        f"rope_scaling.factor={float(factor)!r}",
        f"rope_scaling.original_max_positions={original}",
        f"++rope_scaling.beta_fast={float(rope.number('beta_fast', 32))!r}",
        f"++rope_scaling.beta_slow={float(rope.number('beta_slow', 1))!r}",
    ]


_ROPE_SCALINGS = {"default": _unscaled, "yarn": _yarn}


def interleaved_section(stated: Sequence[int], head_dim: int) -> list[int]:
    """What an interleaved section comes to on the frequencies that a head has.

    The released code gives every third frequency to height and to width as long as its count lasts,
    and the rest to time, without asking that the counts add up.
    """
    pairs = head_dim // 2
    counts = {axis: min(stated[axis], len(range(axis, pairs, 3))) for axis in (HEIGHT, WIDTH)}
    return [pairs - sum(counts.values()), counts[HEIGHT], counts[WIDTH]]


def _vision(vision: Section, text: Section) -> list[str]:
    if rope := vision.get("rope_parameters"):
        Section(rope, "vision_config.rope_parameters").require(ONLY_VISION_ROPE_VALUES)
    width, out = text.count("hidden_size"), vision.count("out_hidden_size")
    if out != width:
        raise CheckpointError(
            f"vision_config.out_hidden_size {out} and text_config.hidden_size {width} must be equal"
        )
    positions = vision.count("num_position_embeddings", 2304)
    if math.isqrt(positions) ** 2 != positions:
        raise CheckpointError(
            f"vision_config.num_position_embeddings must be a square number, it is {positions}"
        )
    return [
        *(f"{ours}={vision.count(key)!r}" for ours, key in VISION_NUMBERS.items()),
        f"++vision.in_channels={vision.count('in_channels', 3)}",
        f"vision.position_side={math.isqrt(positions)}",
        f"size.patch_size={vision.side('patch_size', 16)}",
        f"size.temporal_patch_size={vision.side('temporal_patch_size', 2)}",
        f"size.merge_size={vision.side('spatial_merge_size', 2)}",
        *_fusion(vision),
    ]


def _fusion(vision: Section) -> list[str]:
    taps = vision.values.get("deepstack_visual_indexes")
    if not isinstance(taps, list | tuple) or len(set(taps)) != len(taps):
        raise CheckpointError(
            "vision_config.deepstack_visual_indexes must list different blocks, "
            f"it is {json.dumps(taps)}"
        )
    if not taps:
        return ["fusion=none"]
    overrides = ["fusion=deepstack", f"size.deepstack_blocks={list(taps)}"]
    if list(taps) != sorted(taps):  # the released model adds levels in the order of the blocks
        overrides.append(f"fusion.receiving_layers={[sorted(taps).index(tap) for tap in taps]}")
    return overrides


def _special_tokens(top: Section, text: Section) -> list[str]:
    """The vocabulary's cut where the ids follow from one; every id spelled out where they do not."""
    full = SpecialTokens()
    ids = {
        "image_id": top.get("image_token_id", full.image_id),
        "video_id": top.get("video_token_id", full.video_id),
        "vision_start_id": top.get("vision_start_token_id", full.vision_start_id),
        "vision_end_id": top.get("vision_end_token_id", full.vision_end_id),
        "pad_id": text.get("pad_token_id", text.get("bos_token_id")),
        "im_end_id": text.get("eos_token_id"),
    }
    ids = {name: value[0] if isinstance(value, list) else value for name, value in ids.items()}
    stated = {name: value for name, value in ids.items() if value is not None}
    ranks = stated["image_id"] - full.image_id + QWEN_RANKS
    if ranks > 0 and stated.items() <= vars(special_tokens(ranks)).items():
        return [f"size.vocab_ranks={ranks}"]
    node = "model.special_tokens"
    return [
        f"{node}._target_=vlmkit.sequence.SpecialTokens",
        f"~{node}.num_ranks",
        *(f"+{node}.{name}={value}" for name, value in {**vars(full), **stated}.items()),
    ]


def _word(flag: bool) -> str:
    return str(flag).lower()
