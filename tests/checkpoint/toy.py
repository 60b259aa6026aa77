"""Small random checkpoints, written by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_interleaved": True,
        "mrope_section": [4, 2, 2],
    },
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1, 2],
    "out_hidden_size": 64,
}
TOP = {
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
}


def toy_model(
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    moe: bool = False,
    seed: int = 0,
    **top: Any,
) -> nn.Module:
    """A model of transformers whose weights are large enough for every part to matter."""
    kind = "Qwen3VLMoe" if moe else "Qwen3VL"
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, **(EXPERTS if moe else {}), **(text or {})},
        vision_config={**VISION, **(vision or {})},
        **{**TOP, **top},
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                is_convolution = parameter.ndim == 5
                fan_in = parameter[0].numel() if is_convolution else parameter.shape[-1]
                parameter.normal_(std=0.7 * fan_in**-0.5)
    return model


def save_toy(folder: Path, shard: str = "5GB", **settings: Any) -> nn.Module:
    """Write one with `save_pretrained` of transformers, and return it."""
    model = toy_model(**settings)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def legacy_config(folder: Path) -> None:
    """Rewrite the keys of transformers 5 as those of the released checkpoints."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    config["vision_config"].pop("rope_parameters")
    config["vision_config"]["model_type"] = config["model_type"]
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Change what `model.safetensors` holds."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
