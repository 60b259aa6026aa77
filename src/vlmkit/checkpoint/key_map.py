"""Names of tensors in published Qwen3-VL checkpoints and in vlmkit, as data, for both directions.

A published checkpoint and a vlmkit model hold the same numbers under different names. `PAIRS` is the
whole dictionary: reading and writing checkpoints knows no other published name. Only the comparison
with transformers (`vlmkit.checkpoint.compare`) names modules and tensors of its own, those it shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from vlmkit.errors import CheckpointError
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.vision.siglip2 import SigLIP2ViT

Shape = tuple[int, ...]


class KeyPair(NamedTuple):
    """One line of the dictionary; in patterns `{i}` is a number and `{p}` is `weight` or `bias`."""

    published: str
    ours: str
    published_shape: Callable[[Qwen3VL], Shape] | None = None  # where not only the name differs
    maybe_transposed: bool = False  # transformers 5 saves stacked experts with two axes exchanged


def _conv_kernel(model: Qwen3VL) -> Shape:
    """(dim, channels, time, height, width): the published patch embedding is a Conv3d."""
    vision = model.vision
    if not isinstance(vision, SigLIP2ViT):
        raise CheckpointError(f"the published layout has no place for a {type(vision).__name__}")
    time, side = vision.temporal_patch_size, vision.patch_size
    return (vision.dim, vision.patch_dim // (time * side * side), time, side, side)


_VISION, _TEXT = "model.visual", "model.language_model"
EMBEDDING, HEAD = _TEXT + ".embed_tokens.weight", "lm_head.weight"
_BLOCK, _OUR_BLOCK = _VISION + ".blocks.{i}", "vision.blocks.{i}"
_LAYER, _OUR_LAYER = _TEXT + ".layers.{i}", "decoder.layers.{i}"

PAIRS: tuple[KeyPair, ...] = (
    KeyPair(_VISION + ".patch_embed.proj.weight", "vision.patch_embed.weight", _conv_kernel),
    KeyPair(_VISION + ".patch_embed.proj.bias", "vision.patch_embed.bias"),
    KeyPair(_VISION + ".pos_embed.weight", "vision.position_table.weight"),
    KeyPair(_BLOCK + ".norm1.{p}", _OUR_BLOCK + ".norm1.{p}"),
    KeyPair(_BLOCK + ".norm2.{p}", _OUR_BLOCK + ".norm2.{p}"),
    KeyPair(_BLOCK + ".attn.qkv.{p}", _OUR_BLOCK + ".attention.qkv.{p}"),
    KeyPair(_BLOCK + ".attn.proj.{p}", _OUR_BLOCK + ".attention.proj.{p}"),
    KeyPair(_BLOCK + ".mlp.linear_fc1.{p}", _OUR_BLOCK + ".mlp.fc1.{p}"),
    KeyPair(_BLOCK + ".mlp.linear_fc2.{p}", _OUR_BLOCK + ".mlp.fc2.{p}"),
    KeyPair(_VISION + ".merger.norm.{p}", "merger.norm.{p}"),
    KeyPair(_VISION + ".merger.linear_fc1.{p}", "merger.fc1.{p}"),
    KeyPair(_VISION + ".merger.linear_fc2.{p}", "merger.fc2.{p}"),
    KeyPair(_VISION + ".deepstack_merger_list.{i}.norm.{p}", "fusion.mergers.{i}.norm.{p}"),
    KeyPair(_VISION + ".deepstack_merger_list.{i}.linear_fc1.{p}", "fusion.mergers.{i}.fc1.{p}"),
    KeyPair(_VISION + ".deepstack_merger_list.{i}.linear_fc2.{p}", "fusion.mergers.{i}.fc2.{p}"),
    KeyPair(EMBEDDING, "decoder.embedding.weight"),
    KeyPair(_LAYER + ".input_layernorm.weight", _OUR_LAYER + ".attention_norm.weight"),
    KeyPair(_LAYER + ".post_attention_layernorm.weight", _OUR_LAYER + ".feed_forward_norm.weight"),
    KeyPair(_LAYER + ".self_attn.q_proj.weight", _OUR_LAYER + ".attention.q_proj.weight"),
    KeyPair(_LAYER + ".self_attn.k_proj.weight", _OUR_LAYER + ".attention.k_proj.weight"),
    KeyPair(_LAYER + ".self_attn.v_proj.weight", _OUR_LAYER + ".attention.v_proj.weight"),
    KeyPair(_LAYER + ".self_attn.o_proj.weight", _OUR_LAYER + ".attention.o_proj.weight"),
    KeyPair(_LAYER + ".self_attn.q_norm.weight", _OUR_LAYER + ".attention.q_norm.weight"),
    KeyPair(_LAYER + ".self_attn.k_norm.weight", _OUR_LAYER + ".attention.k_norm.weight"),
    KeyPair(_LAYER + ".mlp.gate_proj.weight", _OUR_LAYER + ".feed_forward.gate_proj.weight"),
    KeyPair(_LAYER + ".mlp.up_proj.weight", _OUR_LAYER + ".feed_forward.up_proj.weight"),
    KeyPair(_LAYER + ".mlp.down_proj.weight", _OUR_LAYER + ".feed_forward.down_proj.weight"),
    KeyPair(_LAYER + ".mlp.gate.weight", _OUR_LAYER + ".feed_forward.router.weight"),
    KeyPair(
        _LAYER + ".mlp.experts.gate_up_proj",
        _OUR_LAYER + ".feed_forward.experts.gate_up_proj",
        maybe_transposed=True,
    ),
    KeyPair(
        _LAYER + ".mlp.experts.down_proj",
        _OUR_LAYER + ".feed_forward.experts.down_proj",
        maybe_transposed=True,
    ),
    KeyPair(_TEXT + ".norm.weight", "decoder.norm.weight"),
    KeyPair(HEAD, "decoder.head.weight"),
)


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of one model: its two names, its two shapes, and how to pass between them."""

    published: str
    ours: str
    published_shape: Shape
    our_shape: Shape
    maybe_transposed: bool

    @property
    def transposed_shape(self) -> Shape | None:
        """The other shape a file may hold it in, if there is one."""
        if not self.maybe_transposed:
            return None
        return (*self.published_shape[:-2], self.published_shape[-1], self.published_shape[-2])

    def to_ours(self, tensor: Tensor, transposed: bool = False) -> Tensor:
        """Published -> ours, a view where possible."""
        return (tensor.transpose(-1, -2) if transposed else tensor).reshape(self.our_shape)

    def to_published(self, tensor: Tensor) -> Tensor:
        """Ours -> published, contiguous."""
        return tensor.reshape(self.published_shape).contiguous()


def published_entries(model: Qwen3VL, leave_out: Iterable[str] = ()) -> dict[str, TensorEntry]:
    """Every parameter of a model by its published name, in the model's order.

    Args:
        model: may be on meta.
        leave_out: names of parts, such as `fusion`, whose parameters are not wanted.

    Raises:
        CheckpointError: the published layout has no name for a parameter; names it and its part.
    """
    parts = tuple(leave_out)
    entries: dict[str, TensorEntry] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        if part in parts:
            continue
        found = translate(name, to_published=True)
        if found is None:
            raise CheckpointError(
                f"the published layout has no name for {name}, a parameter of "
                f"{type(getattr(model, part)).__name__}"
            )
        published, pair = found
        shape = tuple(parameter.shape)
        entries[published] = TensorEntry(
            published=published,
            ours=name,
            published_shape=pair.published_shape(model) if pair.published_shape else shape,
            our_shape=shape,
            maybe_transposed=pair.maybe_transposed,
        )
    return entries


def translate(name: str, to_published: bool) -> tuple[str, KeyPair] | None:
    """The other name of a tensor and the pair that said so; None for a name that no pattern knows."""
    for pattern, template, pair in _patterns(to_published):
        if match := pattern.fullmatch(name):
            return template.format_map(match.groupdict()), pair
    return None


def name_pattern(name: str) -> re.Pattern[str]:
    """What a name with `{i}` and `{p}` stands for; the match has them as groups."""
    regex = re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)")
    return re.compile(regex.replace(r"\{p\}", r"(?P<p>weight|bias)"))


@lru_cache(maxsize=2)
def _patterns(to_published: bool) -> tuple[tuple[re.Pattern[str], str, KeyPair], ...]:
    compiled = []
    for pair in PAIRS:
        source, target = (
            (pair.ours, pair.published) if to_published else (pair.published, pair.ours)
        )
        compiled.append((name_pattern(source), target, pair))
    return tuple(compiled)


def stored_transposed(entries: Iterable[TensorEntry], shapes: dict[str, Shape]) -> bool:
    """Whether a file holds its stacked experts in the layout of transformers 5.

    The published layout is `gate_up_proj` (experts, hidden, 2 * intermediate) and `down_proj`
    (experts, intermediate, hidden); transformers 5 exchanges the last two axes of both when it saves.
    Either tensor alone can be square, both never are, so the shapes always tell.

    Args:
        entries: of the model.
        shapes: of the tensors in the files, by published name.

    Raises:
        CheckpointError: some experts are stored one way and some the other.
    """
    kept: list[str] = []
    swapped: list[str] = []
    for entry in entries:
        shape = shapes.get(entry.published)
        if entry.transposed_shape is None or entry.transposed_shape == entry.published_shape:
            continue
        if shape == entry.published_shape:
            kept.append(entry.published)
        elif shape == entry.transposed_shape:
            swapped.append(entry.published)
    if kept and swapped:
        raise CheckpointError(
            f"{kept[0]} is stored in the published expert layout and {swapped[0]} in that of "
            "transformers 5: the files belong to different checkpoints"
        )
    return bool(swapped)
