"""`python -m vlmkit.generate`, as a user calls it, on a checkpoint in the published layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from tests.commands import run_command
from tests.untrained import save_run
from vlmkit import generate
from vlmkit.assets import asset_path
from vlmkit.build import build_model, compose_config
from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import save_pretrained

command = partial(run_command, generate.main)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the command leaves in its working directory, it is not the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "toy"
    torch.manual_seed(0)
    model = build_model(config=compose_config("model=qwen3vl_tiny"))
    assert isinstance(model, Qwen3VL)
    save_pretrained(model, folder, tokenizer=build_qwen_tokenizer(998))
    return folder


@pytest.mark.parametrize("medium", ["text", "image", "video"])
@pytest.mark.parametrize("dtype", ["null", "bfloat16"])
def test_a_published_checkpoint_answers(
    medium: str,
    dtype: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    media = {
        "text": [],
        "image": [f"image={tmp_path / 'red.png'}"],
        "video": [f"video={asset_path('video', 'big_buck_bunny.mp4')}"],
    }
    arguments = [f"checkpoint={checkpoint}", "device=cpu", "prompt=What is it?"]
    arguments += ["max_new_tokens=6", "sampling.temperature=9", f"dtype={dtype}", *media[medium]]
    assert command(*arguments) == 0
    written = capsys.readouterr()
    assert len(written.out.strip()) > 0
    assert not written.err


@pytest.mark.parametrize("source", ["checkpoint", "run"])
def test_an_unknown_dtype_is_explained(
    source: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(f"{source}={checkpoint}", "prompt=Hi", "dtype=float31") == 2
    assert "dtype=float31: choose one of float32, bfloat16" in capsys.readouterr().err


def test_a_run_is_cast(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    config = compose_config(f"run={run}", "device=cpu", "dtype=bfloat16", config_name="generate")
    model, _ = generate.load(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    OmegaConf.update(config, "dtype", None)
    model, _ = generate.load(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
