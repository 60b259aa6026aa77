"""Folders that cannot be loaded: each is refused with the file and the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoint.toy import edit_tensors, save_toy
from vlmkit.errors import CheckpointError
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import load_pretrained


def change_config(**changes: Any) -> Callable[[Path], None]:
    """Set keys of config.json, given as section__key or key."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (config[section] if section else config)[key] = value
        path.write_text(json.dumps(config))

    return change


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.__delitem__(name))


def put(name: str, tensor: Tensor) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.__setitem__(name, tensor))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM = "model.language_model.norm.weight"
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds neither"),
    "truncated": (truncate, r"model\.safetensors is cut short"),
    "not safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"PK" * 99),
        r"model\.safetensors is cut short or is not",
    ),
    "pickle": (pickle_instead, r"pytorch_model\.bin, a pickle.*save_pretrained"),
    "missing tensor": (drop(NORM), rf"lacks 1 tensor \({NORM}\)"),
    "missing head": (drop("lm_head.weight"), "tie_word_embeddings must be true at the top level"),
    "unexpected tensor": (put("model.visual.extra", torch.ones(2)), r"holds 1 tensor \(model\.vis"),
    "wrong shape": (put(NORM, torch.ones(63)), r"shape \[63\], its config implies \[64\]"),
    "quantised": (put(NORM, torch.ones(64, dtype=torch.int8)), "stored as I8; quantised"),
    "tied, with another head": (change_config(tie_word_embeddings=True), "differs from the embedd"),
    "other model": (change_config(model_type="qwen2_5_vl"), r'model_type is "qwen2_5_vl"'),
    "no text": (change_config(text_config=None), "text_config is missing"),
    "no width": (change_config(text_config__hidden_size=None), r"text_config\.hidden_size must be"),
    "biases": (change_config(text_config__attention_bias=True), "attention_bias is true.* false"),
    "activation": (change_config(text_config__hidden_act="gelu"), "hidden_act is .gelu"),
    "vision activation": (change_config(vision_config__hidden_act="gelu"), "gelu_pytorch_tanh"),
    "dropout": (change_config(text_config__attention_dropout=0.1), "attention_dropout is 0.1"),
    "sparse step": (change_config(text_config__decoder_sparse_step=2), "decoder_sparse_step is 2"),
    "dense layers": (change_config(text_config__mlp_only_layers=[0]), r"mlp_only_layers is \[0\]"),
    "no renormalising": (change_config(text_config__norm_topk_prob=False), "norm_topk_prob is fal"),
    "quantised model": (change_config(quantization_config={"a": 1}), "quantization_config is"),
    "rope type": (
        change_config(text_config__rope_parameters={"rope_type": "linear", "factor": 2}),
        r'rope_type is "linear", vlmkit supports default, yarn',
    ),
    "YaRN variant": (
        change_config(text_config__rope_parameters={"rope_type": "yarn", "mscale": 1.0}),
        "mscale is 1.0",
    ),
    "vision rope": (
        change_config(vision_config__rope_parameters={"rope_theta": 5e3}),
        r"vision_config\.rope_parameters\.rope_theta is 5000",
    ),
    "widths that do not meet": (change_config(vision_config__out_hidden_size=48), "48 and .*64"),
    "tap beyond depth": (
        change_config(vision_config__deepstack_visual_indexes=[9]),
        r"config\.json: .*taps encoder blocks \[9\].*only 4",
    ),
    "tap twice": (
        change_config(vision_config__deepstack_visual_indexes=[1, 1]),
        "must list different blocks",
    ),
    "table not square": (change_config(vision_config__num_position_embeddings=15), "square number"),
}


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    save_toy(folder, text={"num_hidden_layers": 3})
    return folder


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_explained(kind: str, good_folder: Path, tmp_path: Path) -> None:
    spoil, reason = BAD_FOLDERS[kind]
    for file in good_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_bad_shards_are_explained(tmp_path: Path) -> None:
    save_toy(tmp_path, shard="200KB")
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]

    def fails_with(reason: str) -> None:
        with pytest.raises(CheckpointError, match=reason):
            load_pretrained(tmp_path)

    content = (tmp_path / second).read_bytes()
    (tmp_path / second).write_bytes(content[: len(content) // 2])
    fails_with(f"{second} is cut short")
    (tmp_path / second).unlink()
    fails_with(f"{second} is missing, model.safetensors.index.json names it")
    (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
    fails_with("both hold")

    (tmp_path / second).write_bytes(content)
    index_path.write_text(json.dumps({"weight_map": {**index["weight_map"], "x": first}}))
    fails_with(f"places x in {first}, it is not there")
    index_path.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    fails_with("outside its folder")
    index_path.write_text("{}")
    fails_with("has no weight_map")


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_pretrained(tmp_path / "absent")
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match="give the folder"):
        load_pretrained(tmp_path / "model.bin")

    def offline(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("vlmkit.pretrained.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"could not be fetched .*no route.*Offline"):
        load_pretrained("some-owner/some-model")


def test_only_harmless_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_folder: Path
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **kwargs: Any) -> str:
        asked.update(kwargs, name=name)
        return str(good_folder)

    monkeypatch.setattr("vlmkit.pretrained.snapshot_download", download)
    assert isinstance(load_pretrained("some-owner/some-model"), Qwen3VL)
    assert asked["name"] == "some-owner/some-model"
    assert not any(
        pattern.endswith(("bin", "pt", "py", "*")) for pattern in asked["allow_patterns"]
    )
