"""The main job and what follows from it, through the command line, at a few steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import vlmkit
from vlmkit.assets import asset_path
from vlmkit.data.media import ImageFile
from vlmkit.data.quickstart.emoji import EmojiSet
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart
from vlmkit.errors import CheckpointError
from vlmkit.evaluation.samples import answer

SHORT = [
    "model=qwen3vl_tiny",
    "trainer.max_steps=4",
    "planner.samples_per_step=8",
    "data.num_workers=0",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    *(
        f"data.validation.{name}.size=6"
        for name in (
            "group_new_artist",
            "group_new_concepts",
            "count_new_concepts",
            "clip_new_moments",
        )
    ),
]


def command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"vlmkit.{module}", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("work")
    done = command("train", *SHORT, "run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "exact match" in done.stdout
    assert "chance" in done.stdout
    return folder / "run"


def test_run_folder_holds_everything(run):
    for name in (
        "config.yaml",
        "what_ran.json",
        "metrics.jsonl",
        "results.json",
        "checkpoint/model.safetensors",
        "checkpoint/tokenizer.json",
        "plots/loss.png",
        "plots/samples.png",
    ):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events.*"))
    config = OmegaConf.load(run / "config.yaml")
    assert config.model.decoder.hidden_dim == 64
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = set().union(*rows)
    assert {"train/loss", "train/tokens_per_s", "train/data_wait", "val/exact_match"} <= keys
    scores = json.loads((run / "results.json").read_text())["exact_match"]
    assert set(scores["group_new_artist"]) == {"n", "chance", "before", "after"}
    for picture in ("loss", "samples"):
        with Image.open(run / "plots" / f"{picture}.png") as image:
            assert min(image.size) > 200


def test_a_run_loads_and_answers(run, tmp_path):
    loaded = vlmkit.load_run(run)
    stored = load_file(run / "checkpoint" / "model.safetensors")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, stored[name]), name
    emoji = EmojiSet("all", artists=["noto"])
    pixels = emoji.picture(emoji.concepts[0], "noto")
    Image.fromarray(pixels).save(tmp_path / "face.png")
    ask = ["prompt=What is this?", "max_new_tokens=6"]
    image = command("generate", f"run={run}", f"image={tmp_path / 'face.png'}", *ask, cwd=tmp_path)
    assert image.returncode == 0, image.stderr[-2000:]
    asked = Conversation(
        messages=(
            Message(
                role="user",
                parts=(ImagePart(ImageFile(tmp_path / "face.png")), TextPart("What is this?")),
            ),
        )
    )
    expected = answer(loaded.model, loaded.processor, asked, max_new_tokens=6)
    assert image.stdout.strip() == expected.strip()
    clip = asset_path("video", "big_buck_bunny.mp4")
    video = command(
        "generate",
        f"run={run}",
        f"video={clip}",
        *ask,
        "sampling.temperature=1.0",
        "sampling.top_p=0.9",
        "sampling.top_k=50",
        "prefill_tokens=16",
        cwd=tmp_path,
    )
    assert video.returncode == 0, video.stderr[-2000:]
    assert not list(tmp_path.glob("outputs")), "generate leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompt=x"], "give either run=<run folder> or checkpoint="),
        (["run=nowhere", "prompt=x"], "nowhere is not a run folder"),
        (["run=nowhere"], "say what to ask"),
        (["run=nowhere", "prompt=x", "image=absent.png"], "absent.png: there is no such file"),
        (["run=nowhere", "promt=x"], "promt: there is no such key. Did you mean prompt"),
        (["run=nowhere", "prompt=x", "sampling.top_p=2"], "top_p must lie in"),
    ],
)
def test_generate_says_what_is_wrong(arguments, words, tmp_path):
    done = command("generate", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_is_not_overwritten(run):
    weights = (run / "checkpoint" / "model.safetensors").read_bytes()
    done = command("train", *SHORT, f"run_dir={run}", cwd=run.parent)
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert (run / "checkpoint" / "model.safetensors").read_bytes() == weights


def test_a_model_that_does_not_fit_is_refused_before_allocation(tmp_path):
    done = command("train", "model=qwen3vl_235b_a22b", "fusion=deepstack", cwd=tmp_path)
    assert done.returncode == 2
    assert "235,670,022,896 parameters" in done.stderr
    assert "3,511.8 GiB" in done.stderr  # 16 bytes a parameter
    assert "Nothing was allocated" in done.stderr
    assert "model=qwen3vl_small" in done.stderr
    assert "Traceback" not in done.stderr


def test_train_says_what_is_wrong(tmp_path):
    for arguments, words in (
        (["model=qwen3vl_8"], "Did you mean model=qwen3vl_8b"),
        (["model=qwen3vl_tiny", "fusion.tapped_blocks=[1,9]"], "there are only 4"),
        (["-m", "model=qwen3vl_tiny", "fusion=none,deepstak"], "Did you mean fusion=deepstack"),
        (["model=qwen3vl_tiny", "size.vocab_size=512"], "has 1024 ids, the embedding 512 rows"),
        (["model=qwen3vl_tiny", "trainer.precision=bf16-true"], "say precision=bf16_true"),
        (["model=qwen3vl_tiny", "+trainer.foo=1"], "foo"),
        (["model=qwen3vl_tiny", "vision.init=absent.safetensors"], "absent.safetensors"),
    ):
        done = command("train", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_sweeps_run_every_combination_with_options_of_ones_own(tmp_path):
    (tmp_path / "mine" / "fusion").mkdir(parents=True)
    (tmp_path / "mine" / "fusion" / "again.yaml").write_text(
        "_target_: vlmkit.fusion.none.NoFusion\n"
    )
    done = command(
        "train",
        "--config-dir=mine",
        "-m",
        *SHORT,
        "trainer.max_steps=2",
        "fusion=again,deepstack",
        "position=chunked,interleaved",
        "hydra.sweep.dir=sweep",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = sorted((tmp_path / "sweep").glob("*/results.json"))
    assert len(results) == 4


def test_hydra_flags_still_work(tmp_path):
    done = command("train", "model=qwen3vl_tiny", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "qwen3vl" in done.stdout


def test_damaged_runs_are_refused(run, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(run / "checkpoint", copy / "checkpoint")
    shutil.copyfile(run / "config.yaml", copy / "config.yaml")
    weights = copy / "checkpoint" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: \d+ bytes instead"):
        vlmkit.load_run(copy)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256"):
        vlmkit.load_run(copy)
    (copy / "checkpoint" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a complete checkpoint: it holds no manifest"):
        vlmkit.load_run(copy)
    shutil.rmtree(copy / "checkpoint")
    with pytest.raises(CheckpointError, match="holds no weights"):
        vlmkit.load_run(copy)
    with pytest.raises(CheckpointError, match="not a run folder"):
        vlmkit.load_run(tmp_path / "absent")
