"""A model -> the config.json of a published checkpoint, in the keys that every engine reads.

transformers 5 writes newer keys (`rope_parameters`, `num_local_experts`) that older engines do not
know; these are the keys of the released checkpoints, which transformers 5 reads as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from vlmkit.checkpoint.published import FAMILIES
from vlmkit.errors import CheckpointError
from vlmkit.fusion.deepstack import DeepStack
from vlmkit.fusion.none import NoFusion
from vlmkit.language.attention import GroupedQueryAttention
from vlmkit.language.decoder import Decoder, DecoderLayer
from vlmkit.language.layers import SwiGLU
from vlmkit.language.moe import MixtureOfExperts
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.position.axes import HEIGHT, TIME, WIDTH, chunked, interleaved
from vlmkit.position.mrope import MRoPE, YaRN
from vlmkit.vision.merger import PatchMerger
from vlmkit.vision.siglip2 import SigLIP2ViT, VisionBlock

MAX_POSITIONS = 262_144  # of all released sizes; the model itself has no limit

Part = TypeVar("Part", bound=nn.Module)
Config = dict[str, Any]


def published_config(model: Qwen3VL) -> Config:
    """The content of config.json for a model.

    Args:
        model: may be on meta.

    Raises:
        CheckpointError: the published layout cannot say what the model does; gives the reason.
    """
    decoder = _exactly(model.decoder, Decoder, "decoder")
    layers = [_exactly(layer, DecoderLayer, "decoder layer") for layer in decoder.layers.values()]
    kinds = {type(layer.feed_forward) for layer in layers}
    if len(kinds) != 1 or (kind := kinds.pop()) not in _FEED_FORWARDS:
        raise CheckpointError(
            "the published layout knows one feed-forward for all layers, SwiGLU or MixtureOfExperts; "
            f"the decoder has {sorted(type(layer.feed_forward).__name__ for layer in layers)}"
        )
    model_type, feed_forward = _FEED_FORWARDS[kind]
    vision = _exactly(model.vision, SigLIP2ViT, "vision")
    block = _exactly(vision.blocks[0], VisionBlock, "vision block")
    merger = _exactly(model.merger, PatchMerger, "merger")
    if merger.norm_after_grouping:
        raise CheckpointError(
            "the published main merger normalises patches before they are grouped"
        )
    attention = _exactly(layers[0].attention, GroupedQueryAttention, "decoder attention")
    special = model.special_tokens
    dtype = str(decoder.embedding.weight.dtype).removeprefix("torch.")
    return {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
        "image_token_id": special.image_id,
        "video_token_id": special.video_id,
        "vision_start_token_id": special.vision_start_id,
        "vision_end_token_id": special.vision_end_id,
        "tie_word_embeddings": decoder.head is None,
        "transformers_version": "4.57.0",
        "text_config": {
            "model_type": f"{model_type}_text",
            "dtype": dtype,
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_dim,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "head_dim": decoder.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": decoder.norm.eps,
            **feed_forward(layers[0].feed_forward),
            **_rope(_exactly(model.position, MRoPE, "position")),
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "bos_token_id": _within(decoder, special.pad_id),
            "eos_token_id": _within(decoder, special.im_end_id),
            "use_cache": True,
        },
        "vision_config": {
            "model_type": model_type,
            "depth": vision.depth,
            "hidden_size": vision.dim,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_heads": block.attention.num_heads,
            "in_channels": vision.patch_dim // (vision.temporal_patch_size * vision.patch_size**2),
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "spatial_merge_size": merger.merge_size,
            "num_position_embeddings": vision.position_table.side**2,
            "out_hidden_size": decoder.hidden_dim,
            "deepstack_visual_indexes": _taps(model),
            "hidden_act": "gelu_pytorch_tanh",
            "initializer_range": 0.02,
        },
    }


def _within(decoder: Decoder, token_id: int) -> int | None:
    """A token id, or None where a small vocabulary has no such token."""
    return token_id if token_id < decoder.vocab_size else None


def _exactly(part: nn.Module, wanted: type[Part], name: str) -> Part:
    """The part, if it is of this class; a subclass may compute something else."""
    if type(part) is not wanted:
        raise CheckpointError(
            f"the published layout knows only {wanted.__name__} as {name}, "
            f"this model has {type(part).__name__}"
        )
    return part


def _swiglu(part: SwiGLU) -> Config:
    return {"intermediate_size": part.gate_proj.out_features}


def _experts(part: MixtureOfExperts) -> Config:
    expert_dim = part.experts.down_proj.shape[1]
    return {
        "intermediate_size": part.num_active
        * expert_dim,  # required, and unused without dense layers
        "num_experts": part.num_experts,
        "num_experts_per_tok": part.num_active,
        "moe_intermediate_size": expert_dim,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


_FEED_FORWARDS: Mapping[type[nn.Module], tuple[str, Callable[[Any], Config]]] = {
    SwiGLU: ("qwen3_vl", _swiglu),
    MixtureOfExperts: ("qwen3_vl_moe", _experts),
}


def _rope(position: MRoPE) -> Config:
    section = [position.axes.count(axis) for axis in (TIME, HEIGHT, WIDTH)]
    layout = {"mrope_interleaved": _is_interleaved(position, section), "mrope_section": section}
    theta = int(position.theta) if float(position.theta).is_integer() else position.theta
    if position.scaling is None:
        scaling: Config = {"rope_type": "default"}
        longest = MAX_POSITIONS
    elif type(position.scaling) is YaRN:
        yarn = position.scaling
        scaling = {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_positions,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
        }
        longest = int(yarn.factor * yarn.original_max_positions)
    else:
        raise CheckpointError(
            f"the published layout has no name for the rope scaling {type(position.scaling).__name__}"
        )
    return {
        "rope_theta": theta,
        "rope_scaling": {**scaling, **layout},
        "max_position_embeddings": longest,
    }


def _is_interleaved(position: MRoPE, section: list[int]) -> bool:
    try:
        if position.axes == tuple(interleaved(section)):
            return True
    except ValueError:
        pass  # these counts cannot be interleaved
    if position.axes == tuple(chunked(section)):
        return False
    raise CheckpointError(
        "the published layout knows interleaved and chunked rotary axes, "
        f"this model has {list(position.axes)}"
    )


def _taps(model: Qwen3VL) -> list[int]:
    """Tapped blocks; the published model adds them in order after the first decoder layers."""
    if type(model.fusion) is NoFusion:
        return []
    fusion = _exactly(model.fusion, DeepStack, "fusion beside NoFusion")
    implied = tuple(sorted(fusion.tapped_blocks).index(tap) for tap in fusion.tapped_blocks)
    if fusion.receiving_layers != implied or len(set(fusion.tapped_blocks)) != len(implied):
        raise CheckpointError(
            "in the published layout the first decoder layers receive the tapped blocks in order: "
            f"blocks {list(fusion.tapped_blocks)} go to layers {list(implied)}, "
            f"in this model to {list(fusion.receiving_layers)}"
        )
    return list(fusion.tapped_blocks)
