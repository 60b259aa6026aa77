"""`python -m vlmkit.convert`, as a user calls it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.toy import save_toy
from tests.commands import run_command
from vlmkit import convert
from vlmkit.pretrained import load_pretrained

command = partial(run_command, convert.main)


def test_experts_of_transformers_5_become_those_of_the_hub(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    save_toy(source, moe=True, shard="200KB")
    (source / "chat_template.jinja").write_text("of the source")
    (source / "generation_config.json").write_text('{"temperature": 0.1}')
    (source / "tokenizer.json").write_text("{}")
    (source / "modeling_custom.py").write_text("raise SystemExit")
    assert command(f"input={source}", f"output={target}") == 0

    tensors = load_file(target / "model.safetensors")
    prefix = "model.language_model.layers.0.mlp.experts"
    assert tensors[f"{prefix}.gate_up_proj"].shape == (6, 64, 48)
    assert tensors[f"{prefix}.down_proj"].shape == (6, 24, 64)
    text = json.loads((target / "config.json").read_text())["text_config"]
    assert text["num_experts"] == 6
    assert text["rope_theta"] == 5_000_000
    assert not {"num_local_experts", "rope_parameters"} & text.keys()
    before, after = (
        dict(load_pretrained(folder).named_parameters()) for folder in (source, target)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)

    # what stands beside the weights is the source's own, code excepted
    assert (target / "chat_template.jinja").read_text() == "of the source"
    assert json.loads((target / "generation_config.json").read_text()) == {"temperature": 0.1}
    assert (target / "tokenizer.json").read_text() == "{}"
    assert not (target / "modeling_custom.py").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_dtype_shards_and_overwriting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    save_toy(source, tie_word_embeddings=True)
    arguments = (f"input={source}", f"output={target}")
    assert command(*arguments, "dtype=bfloat16", "max_shard_gb=0.0002") == 0
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 2
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors
    config = json.loads((target / "config.json").read_text())
    assert config["text_config"]["dtype"] == "bfloat16"

    assert command(*arguments) == 2
    assert "pass overwrite=true" in capsys.readouterr().err
    assert command(*arguments, "overwrite=true") == 0
    assert not list(target.glob("model-*"))
    assert load_pretrained(target).decoder.norm.weight.dtype == torch.float32


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"input={tmp_path}") == 2
    assert "output=<folder> are needed" in capsys.readouterr().err
    assert command(f"input={tmp_path}", f"output={tmp_path / 'out'}") == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert command(f"input={tmp_path}", f"output={tmp_path / 'out'}", "dtype=int4") == 2
    assert "choose one of float32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
