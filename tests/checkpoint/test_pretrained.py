"""Checkpoints in and out, against transformers, through the code that users run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoint.toy import TEXT, edit_tensors, legacy_config, save_toy, transformers
from tests.conftest import spread
from vlmkit.build import build_model
from vlmkit.checkpoint.compare import LOGITS, Recording, record_ours, record_reference
from vlmkit.checkpoint.parity_cases import CASES, InputSpec, make_inputs
from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.fusion.deepstack import DeepStack
from vlmkit.fusion.none import NoFusion
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.parity import run_parity, worst
from vlmkit.pretrained import load_pretrained, save_pretrained

ROPE = TEXT["rope_parameters"]

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied, sharded": {"shard": "200KB"},
    "experts": {"moe": True},
    "three active experts of five": {
        "moe": True,
        "text": {"num_experts": 5, "num_experts_per_tok": 3},
    },
    "experts with a square tensor": {"moe": True, "text": {"moe_intermediate_size": 32}},
    "odd head counts, query width not hidden": {
        "text": {
            "hidden_size": 40,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "rope_parameters": {**ROPE, "mrope_section": [4, 4, 4]},
        },
        "vision": {"hidden_size": 36, "num_heads": 3, "out_hidden_size": 40},
    },
    "one level": {"vision": {"deepstack_visual_indexes": [2]}},
    "no level": {"vision": {"deepstack_visual_indexes": []}},
    "levels out of order": {"vision": {"deepstack_visual_indexes": [3, 0]}},
    "YaRN": {
        "text": {
            "max_position_embeddings": 96,
            "rope_parameters": {
                **ROPE,
                "rope_type": "yarn",
                "factor": 3.0,
                "original_max_position_embeddings": 32,
            },
        }
    },
    "no theta, no section": {"text": {"rope_parameters": {"rope_type": "default"}}},
    "other patches and windows": {
        "vision": {
            "patch_size": 8,
            "temporal_patch_size": 1,
            "in_channels": 1,
            "spatial_merge_size": 3,
        }
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    save_toy(tmp_path, **VARIANTS[name])
    report = run_parity(tmp_path)
    assert list(report) == list(CASES)
    for case, differences in report.items():
        logits = differences[LOGITS]
        assert logits.largest > 1.0
        assert logits.worst <= 1e-5, case  # measured: 2.7e-6 over all variants and cases
        for part, found in differences.items():
            # measured: 1.8e-6 for outputs, 1.7e-6 for gradients
            assert found.relative <= 1e-5, (case, part, found)
    gradients = [part for part in report["mix"] if part.startswith("gradient")]
    assert len(gradients) >= 9
    assert all(report["mix"][part].largest > 1e-4 for part in gradients)


def swap_experts(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        if ".mlp.experts." in name:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()


def test_both_expert_layouts_give_the_same_model(tmp_path: Path) -> None:
    save_toy(tmp_path, moe=True)
    before = dict(load_pretrained(tmp_path).named_parameters())
    edit_tensors(tmp_path, swap_experts)
    legacy_config(tmp_path)
    after = dict(load_pretrained(tmp_path).named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert worst(run_parity(tmp_path), LOGITS).worst <= 1e-5  # measured: 1.8e-6


def test_theta_missing_from_a_legacy_config_is_that_of_transformers(tmp_path: Path) -> None:
    save_toy(tmp_path)
    legacy_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["text_config"]["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_pretrained(tmp_path).position.theta == 500_000
    assert worst(run_parity(tmp_path), LOGITS).worst <= 1e-5  # measured: 2.5e-6


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_what_we_save_transformers_loads(moe: bool, tmp_path: Path) -> None:
    theirs = save_toy(tmp_path / "theirs", moe=moe, tie_word_embeddings=not moe)
    model = load_pretrained(tmp_path / "theirs")
    save_pretrained(model, tmp_path / "ours", max_shard_gb=2e-4)

    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    if moe:
        swap_experts(stored)  # transformers 5 -> the hub's layout
    assert tensors.keys() == stored.keys()
    assert all(torch.equal(tensors[name], stored[name]) for name in stored)

    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    inputs = make_inputs(CASES["mix"], InputSpec.of(model), seed=1)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, theirs(**inputs).logits)


def test_a_pipeline_of_transformers_can_be_moved_over(tmp_path: Path) -> None:
    """Its processor, then either model; the checkpoint is ours."""
    torch.manual_seed(0)
    model = build_model("model=qwen3vl_tiny")
    assert isinstance(model, Qwen3VL)
    spread(model)
    save_pretrained(model, tmp_path / "out", tokenizer=build_qwen_tokenizer(998))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (256, 320, 3), dtype=np.uint8)
    clip = random.integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    times = {"total_num_frames": 5, "fps": 2.0, "frames_indices": list(range(5))}
    content = [{"type": "image"}, {"type": "text", "text": "What moves?"}, {"type": "video"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}])
    inputs = processor(
        text=[prompt, "Hello!"],
        images=[picture],
        videos=[clip],
        video_metadata=[times],
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        padding=True,
        return_tensors="pt",
    )
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    batch = batch_from_hf(inputs, model.special_tokens)
    with torch.no_grad():
        difference = theirs(**inputs).logits - model.logits(batch)
    real = inputs["attention_mask"].bool()
    assert difference[real].abs().max() <= 1e-5  # measured: 2.1e-6


def test_bfloat16_is_as_exact_as_transformers(tmp_path: Path) -> None:
    """Both in bfloat16, each against the same float32 reference with bfloat16 weights."""
    save_toy(tmp_path / "full")
    save_pretrained(load_pretrained(tmp_path / "full", dtype="bfloat16"), tmp_path / "half")
    ours = load_pretrained(tmp_path / "half")
    assert next(ours.parameters()).dtype == torch.bfloat16

    def theirs(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], Recording]:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            tmp_path / "half", dtype=dtype
        ).eval()
        return lambda inputs: record_reference(model, inputs)

    exact, rounded = theirs(torch.float32), theirs(torch.bfloat16)
    errors = torch.zeros(2)
    for seed in range(4):
        inputs = make_inputs(CASES["mix"], InputSpec.of(ours), seed)
        reference = exact(inputs).outputs[LOGITS]
        for i, recording in enumerate((record_ours(ours, inputs), rounded(inputs))):
            errors[i] += (recording.outputs[LOGITS].float() - reference).square().mean()
    our_error, their_error = errors.div(4).sqrt().tolist()
    assert our_error <= 1.1 * their_error  # measured: 0.00695 and 0.00686, of logits spread by 0.73


def test_dtype_device_and_mode(tmp_path: Path) -> None:
    save_toy(tmp_path)
    model = load_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.position.inv_freq().dtype == torch.float32
    assert not model.training
    with pytest.raises(ConfigError, match="bloat16: choose one of"):
        load_pretrained(tmp_path, dtype="bloat16")


def test_weights_do_not_stay_tied_to_the_file(tmp_path: Path) -> None:
    save_toy(tmp_path)
    model = load_pretrained(tmp_path)
    before = model.decoder.norm.weight.clone()
    size = (tmp_path / "model.safetensors").stat().st_size
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * size)
    assert torch.equal(model.decoder.norm.weight, before)


def test_a_part_of_ones_own_replaces_the_stored_one(tmp_path: Path) -> None:
    save_toy(tmp_path)
    model = load_pretrained(tmp_path, fusion=NoFusion())
    assert not model.fusion.tapped_blocks
    with pytest.raises(
        CheckpointError,
        match=r"holds 18 tensors \(model\.visual\.deepstack_merger_list\.0\S+, .* and 13 more\), for",
    ):
        load_pretrained(tmp_path, "fusion=none")
    chunked = load_pretrained(tmp_path, "position=chunked")
    assert chunked.position.axes == (0, 0, 0, 0, 1, 1, 2, 2)


def test_a_part_of_ones_own_takes_the_stored_dtype(tmp_path: Path) -> None:
    save_toy(tmp_path / "full")
    save_pretrained(load_pretrained(tmp_path / "full", dtype="bfloat16"), tmp_path / "half")
    fusion = DeepStack(tapped_blocks=[0, 2], vision_dim=32, hidden_dim=64)
    weight = fusion.mergers[0].fc1.weight.detach().clone()
    model = load_pretrained(tmp_path / "half", fusion=fusion)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(
        model.fusion.mergers[0].fc1.weight, weight.bfloat16()
    )  # kept, but for its dtype
    inputs = make_inputs(CASES["mix"], InputSpec.of(model), seed=0)
    with torch.no_grad():
        assert model.logits(batch_from_hf(inputs, model.special_tokens)).isfinite().all()
