"""What engines find in an exported checkpoint, written down by hand: names, shapes, settings, files.

Other tests hold the export against the installed transformers, whose layout changes with its versions;
this is the released checkpoints' own, which vLLM and SGLang read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmkit.build import build_model
from vlmkit.checkpoint.key_map import published_entries
from vlmkit.checkpoint.published_config import published_config
from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import save_pretrained

LARGE = {"depth": 24, "dim": 1024, "inner": 4096, "taps": [5, 11, 17], "heads": 16}
SO400M = {"depth": 27, "dim": 1152, "inner": 4304, "taps": [8, 16, 24], "heads": 16}
# hidden, layers, heads, key-value heads, inner, tied, experts, encoder
RELEASED: dict[str, tuple[int, int, int, int, int, bool, int, dict[str, Any]]] = {
    "qwen3vl_2b": (2048, 28, 16, 8, 6144, True, 0, LARGE),
    "qwen3vl_4b": (2560, 36, 32, 8, 9728, True, 0, LARGE),
    "qwen3vl_8b": (4096, 36, 32, 8, 12288, False, 0, SO400M),
    "qwen3vl_32b": (5120, 64, 64, 8, 25600, False, 0, SO400M),
    "qwen3vl_30b_a3b": (2048, 48, 32, 4, 768, False, 128, SO400M),
    "qwen3vl_235b_a22b": (4096, 94, 64, 4, 1536, False, 128, SO400M),
}
VOCAB, HEAD_DIM, POSITIONS = 151_936, 128, 2304

CONFIG_KEYS = {
    *("architectures", "model_type", "image_token_id", "video_token_id", "vision_start_token_id"),
    *("vision_end_token_id", "tie_word_embeddings", "transformers_version", "text_config"),
    "vision_config",
}
TEXT_KEYS = {
    *("model_type", "dtype", "vocab_size", "hidden_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_theta"),
    *("intermediate_size", "max_position_embeddings", "rope_scaling", "attention_bias"),
    *("attention_dropout", "initializer_range", "bos_token_id", "eos_token_id", "use_cache"),
}
EXPERT_KEYS = {
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
    *("decoder_sparse_step", "mlp_only_layers"),
}
VISION_KEYS = {
    *("model_type", "depth", "hidden_size", "intermediate_size", "num_heads", "in_channels"),
    *("patch_size", "temporal_patch_size", "spatial_merge_size", "num_position_embeddings"),
    *("out_hidden_size", "deepstack_visual_indexes", "hidden_act", "initializer_range"),
}


def golden_tensors(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the released checkpoint."""
    hidden, layers, heads, kv_heads, inner, tied, experts, encoder = RELEASED[size]
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int, bias: bool) -> None:
        found[f"{name}.weight"] = (out, into)
        if bias:
            found[f"{name}.bias"] = (out,)

    def layer_norm(name: str, dim: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (dim,)

    text = "model.language_model"
    found[f"{text}.embed_tokens.weight"] = (VOCAB, hidden)
    found[f"{text}.norm.weight"] = (hidden,)
    if not tied:
        found["lm_head.weight"] = (VOCAB, hidden)
    for i in range(layers):
        layer = f"{text}.layers.{i}"
        found[f"{layer}.input_layernorm.weight"] = (hidden,)
        found[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        found[f"{layer}.self_attn.q_norm.weight"] = (HEAD_DIM,)
        found[f"{layer}.self_attn.k_norm.weight"] = (HEAD_DIM,)
        linear(f"{layer}.self_attn.q_proj", heads * HEAD_DIM, hidden, False)
        linear(f"{layer}.self_attn.k_proj", kv_heads * HEAD_DIM, hidden, False)
        linear(f"{layer}.self_attn.v_proj", kv_heads * HEAD_DIM, hidden, False)
        linear(f"{layer}.self_attn.o_proj", hidden, heads * HEAD_DIM, False)
        if experts:
            linear(f"{layer}.mlp.gate", experts, hidden, False)
            found[f"{layer}.mlp.experts.gate_up_proj"] = (experts, hidden, 2 * inner)
            found[f"{layer}.mlp.experts.down_proj"] = (experts, inner, hidden)
        else:
            linear(f"{layer}.mlp.gate_proj", inner, hidden, False)
            linear(f"{layer}.mlp.up_proj", inner, hidden, False)
            linear(f"{layer}.mlp.down_proj", hidden, inner, False)

    vision, dim = "model.visual", encoder["dim"]
    found[f"{vision}.patch_embed.proj.weight"] = (dim, 3, 2, 16, 16)
    found[f"{vision}.patch_embed.proj.bias"] = (dim,)
    found[f"{vision}.pos_embed.weight"] = (POSITIONS, dim)
    for i in range(encoder["depth"]):
        block = f"{vision}.blocks.{i}"
        layer_norm(f"{block}.norm1", dim)
        layer_norm(f"{block}.norm2", dim)
        linear(f"{block}.attn.qkv", 3 * dim, dim, True)
        linear(f"{block}.attn.proj", dim, dim, True)
        linear(f"{block}.mlp.linear_fc1", encoder["inner"], dim, True)
        linear(f"{block}.mlp.linear_fc2", dim, encoder["inner"], True)
    mergers = {f"{vision}.merger": dim}
    mergers |= {f"{vision}.deepstack_merger_list.{i}": 4 * dim for i in range(3)}
    for merger, normed in mergers.items():
        layer_norm(f"{merger}.norm", normed)
        linear(f"{merger}.linear_fc1", 4 * dim, 4 * dim, True)
        linear(f"{merger}.linear_fc2", hidden, 4 * dim, True)
    return found


@pytest.mark.parametrize("size", RELEASED)
def test_names_shapes_and_config_of_every_size(size: str) -> None:
    model = build_model(f"model={size}", device="meta", dtype=torch.bfloat16)
    assert isinstance(model, Qwen3VL)
    written = {name: entry.published_shape for name, entry in published_entries(model).items()}
    assert written == golden_tensors(size)

    hidden, layers, heads, kv_heads, inner, tied, experts, encoder = RELEASED[size]
    config = published_config(model)
    kind = "qwen3_vl_moe" if experts else "qwen3_vl"
    family = "Qwen3VLMoe" if experts else "Qwen3VL"
    text, vision = config["text_config"], config["vision_config"]
    assert config.keys() == CONFIG_KEYS
    assert text.keys() == TEXT_KEYS | (EXPERT_KEYS if experts else set())
    assert vision.keys() == VISION_KEYS
    assert config["architectures"] == [f"{family}ForConditionalGeneration"]
    assert (config["model_type"], text["model_type"]) == (kind, f"{kind}_text")
    ids = [config[key] for key in sorted(CONFIG_KEYS) if key.endswith("_token_id")]
    assert ids == [151_655, 151_656, 151_653, 151_652]  # image, video, vision end, vision start
    assert (text["bos_token_id"], text["eos_token_id"]) == (151_643, 151_645)
    assert config["tie_word_embeddings"] is tied
    assert text["dtype"] == "bfloat16"
    assert text["rope_theta"] == 5_000_000
    assert text["rope_scaling"] == {
        "mrope_interleaved": True,
        "mrope_section": [24, 20, 20],
        "rope_type": "default",
    }
    assert text["max_position_embeddings"] == 262_144
    assert [text[key] for key in ("hidden_size", "num_hidden_layers", "head_dim")] == [
        *(hidden, layers, HEAD_DIM)
    ]
    assert [text[key] for key in ("num_attention_heads", "num_key_value_heads")] == [
        heads,
        kv_heads,
    ]
    if experts:
        assert [text[key] for key in ("num_experts", "num_experts_per_tok")] == [experts, 8]
        assert text["moe_intermediate_size"] == inner
    else:
        assert text["intermediate_size"] == inner
    assert [vision[key] for key in ("depth", "hidden_size", "intermediate_size", "num_heads")] == [
        *(encoder["depth"], encoder["dim"], encoder["inner"], encoder["heads"])
    ]
    assert vision["deepstack_visual_indexes"] == encoder["taps"]
    assert (vision["out_hidden_size"], vision["num_position_embeddings"]) == (hidden, POSITIONS)


def test_settings_of_processor_and_tokenizer(tmp_path: Path) -> None:
    model = build_model("model=qwen3vl_tiny")
    assert isinstance(model, Qwen3VL)
    save_pretrained(model, tmp_path / "out", tokenizer=build_qwen_tokenizer(998))

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / "out" / name).read_text())
        return found

    common = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image, video = read("preprocessor_config.json"), read("video_preprocessor_config.json")
    assert common.items() <= image.items()
    assert common.items() <= video.items()
    assert image["image_processor_type"] == "Qwen2VLImageProcessorFast"
    assert image["size"] == {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    assert video["video_processor_type"] == "Qwen3VLVideoProcessor"
    assert video["size"] == {"shortest_edge": 4_096, "longest_edge": 25_165_824}
    tokenizer = read("tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "Qwen2Tokenizer"
    assert (tokenizer["eos_token"], tokenizer["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
    assert "<|vision_start|>" in tokenizer["additional_special_tokens"]
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert template == read("chat_template.json")["chat_template"]
    for marker in ("<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|>", "<tool_call>"):
        assert marker in template
