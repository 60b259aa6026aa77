"""The launcher puts the model into VLMEvalKit's table and runs its run.py."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.conftest import KITS, forget
from tests.serving.served import Tiny, png
from vlmkit.assets import asset_path
from vlmkit.data.media import ImageFile, VideoFile
from vlmkit.data.record import ImagePart, VideoPart
from vlmkit.errors import ConfigError
from vlmkit.plugins import vlmevalkit

CLIP = asset_path("video", "big_buck_bunny.mp4")


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    forget()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["launcher"])
    yield KITS
    forget()


def test_the_launcher_runs_the_harness(kit: Path, run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    picture.write_bytes(png())
    message = [
        {"type": "text", "value": "First"},
        {"type": "image", "value": str(picture)},
        {"type": "video", "value": str(CLIP), "fps": 1.0},
        {"type": "text", "value": "then?"},
    ]
    (tmp_path / "question.json").write_text(json.dumps(message))
    vlmevalkit.main(
        ["--run", str(run), "--kit", str(kit), "--device", "cpu", "--max-new-tokens", "8",
         "--data", str(tmp_path / "question.json"), "--work-dir", str(tmp_path)]
    )  # fmt: skip
    answer = json.loads((tmp_path / "vlmkit.json").read_text())
    tiny = Tiny.load(run)
    parts = ("First", ImagePart(ImageFile(picture)), VideoPart(VideoFile(CLIP)), "then?")
    assert answer == tiny.expected(*parts, max_new_tokens=8).text

    model = importlib.import_module("vlmeval.config").supported_VLM["vlmkit"]()
    turns = [{"role": "user", "content": [{"type": "text", "value": "Hello!"}]}]
    assert model.chat_inner(turns) == tiny.expected("Hello!", max_new_tokens=8).text
    with pytest.raises(ConfigError, match=r"toy part 0: .*is on the network"):
        model.generate_inner([{"type": "image", "value": "https://example.org/a.png"}], "toy")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either --run"),
        (["--run", "a", "--checkpoint", "b"], "give either --run"),
        (["--run", "a", "--model", "other"], "--model: the model is the one of --run"),
        (["--run", "a", "--name", "taken"], "--name taken: VLMEvalKit has a model of that name"),
    ],
)
def test_mistakes_are_named(
    kit: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        vlmevalkit.main([*arguments, "--kit", str(kit)])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_without_the_harness(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        vlmevalkit.main(["--run", "a", "--kit", str(tmp_path)])
    assert "VLMEvalKit cannot be imported" in capsys.readouterr().err


@pytest.mark.skipif(
    "VLMKIT_VLMEVALKIT" not in os.environ, reason="VLMKIT_VLMEVALKIT names no clone of VLMEvalKit"
)
def test_a_clone_takes_the_model(monkeypatch: pytest.MonkeyPatch, kit: Path, run: Path) -> None:
    clone = Path(os.environ["VLMKIT_VLMEVALKIT"])
    script = vlmevalkit.insert("vlmkit", {"run": str(run), "max_new_tokens": 8}, [], clone)
    assert script == clone.resolve() / "run.py"
    model = importlib.import_module("vlmeval.config").supported_VLM["vlmkit"]()
    message = [{"type": "text", "value": "Hello!"}]
    assert model.generate(message) == Tiny.load(run).expected("Hello!", max_new_tokens=8).text
