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


def test_log_probabilities_are_printed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"checkpoint={checkpoint}", "device=cpu", "prompt=Hi", "max_new_tokens=3"]
    arguments += ["top_logprobs=2", 'stop=[never,"a, b"]', "stop_ids=[]", "prefill_tokens=4"]
    arguments += ["sampling.repetition_penalty=1.5", "sampling.frequency_penalty=0.1"]
    assert command(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "finish_reason: length"
    head = next(i for i, line in enumerate(lines) if "log-probability" in line)
    assert len(lines[head + 1 : -1]) == 3
    assert all(line.count("-") >= 3 for line in lines[head + 1 : -1])


def test_a_stop_string_ends_the_answer(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"checkpoint={checkpoint}", "device=cpu", "prompt=Hi", "max_new_tokens=12"]
    arguments += ["stop_ids=[]"]
    assert command(*arguments) == 0
    whole = capsys.readouterr().out[:-1]
    stop = whole[4:7]
    assert command(*arguments, f"stop={stop}") == 0
    assert capsys.readouterr().out == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("max_new_tokens=0", "max_new_tokens must be a whole number from 1, got 0"),
        ("stop=[1,2]", "stop must be a list of strings"),
        ("stop_ids=abc", "stop_ids must be a list of token ids"),
        ("top_logprobs=-1", "top_logprobs must be"),
        ("prefill_tokens=0", "prefill_tokens must be"),
        ("sampling.min_p=2", "min_p must lie in [0, 1], got 2"),
        ("sampling.temperature=hot", "temperature must be a number, got 'hot'"),
        ("sampling.repetition_penalty=0", "repetition_penalty must be above 0"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_loaded(
    wrong: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(f"checkpoint={tmp_path / 'none'}", "prompt=Hi", wrong) == 2
    assert words in capsys.readouterr().err


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
