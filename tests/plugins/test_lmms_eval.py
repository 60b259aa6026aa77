"""lmms-eval finds the model by its entry point and gets the answers of `vlmkit.generate`."""

from __future__ import annotations

import importlib
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving.served import Tiny, png
from vlmkit.assets import asset_path
from vlmkit.build import CONF_DIR
from vlmkit.data.media import ImageBlob, InMemory, VideoFile
from vlmkit.data.record import ImagePart, VideoPart
from vlmkit.errors import ConfigError
from vlmkit.models.generation import Sampling

ROOT, GROUP = CONF_DIR.parent, "lmms_eval.models"
CLIP = asset_path("video", "big_buck_bunny.mp4")
RED = ImagePart(ImageBlob(InMemory(png(), "red")))


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


DOCS = [
    [{"role": "user", "content": [
        {"type": "image", "url": Image.new("RGB", (64, 48), "red")}, text("What?")]}],
    [{"role": "user", "content": [
        {"type": "video", "url": str(CLIP), "start_time": 1.0, "end_time": 3.0}, text("And?")]}],
    [{"role": "user", "content": [text("Hello!")]}],
]  # fmt: skip
PARTS = [(RED, "What?"), (VideoPart(VideoFile(CLIP), 1.0, 3.0), "And?"), ("Hello!",)]


def test_the_chat_path(
    lmms_eval: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    found = EntryPoint("vlmkit", declared[GROUP]["vlmkit"], GROUP)
    manifest = found.load()()
    assert manifest.simple_class_path is None
    module, _, name = manifest.chat_class_path.rpartition(".")
    if lmms_eval == "installed":
        registries = importlib.import_module("lmms_eval.models.registry_v2")
        monkeypatch.setattr(registries, "entry_points", lambda: EntryPoints([found]))
        registry = registries.ModelRegistryV2()
        registry.load_entrypoint_manifests()
        model_class = registry.get_model_class(manifest.model_id)  # checks it, too
    else:
        model_class = getattr(importlib.import_module(module), name)
        assert not model_class.is_simple
    model = model_class.create_from_arg_string(
        f"run={run},max_new_tokens=8", {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    )
    model.task_dict = {"toy": {"test": DOCS}}
    instance = importlib.import_module("lmms_eval.api.instance").Instance

    def ask(kind: str, *arguments: Any) -> Any:
        meta = {"task": "toy", "doc_id": 0, "repeats": 1}
        return instance(request_type=kind, arguments=arguments, idx=0, metadata=meta)

    tiny = Tiny(model=model.harness.model, processor=model.harness.processor)
    whole = [tiny.expected(*parts, max_new_tokens=8).text for parts in PARTS]
    assert whole[2]
    settings = [
        {"max_new_tokens": 8, "do_sample": False, "temperature": 0.7, "until": None},
        {"top_p": None, "num_beams": 1, "modality": "video"},
        {"max_gen_toks": 9, "until": [whole[2][2:4], ""], "temperature": 0},
    ]
    requests = [
        ask("generate_until", "", lambda doc: doc, settings[i], i, "toy", "test") for i in range(3)
    ]
    results = model.generate_until(requests)
    assert [r.text for r in results] == [*whole[:2], whole[2][: whole[2].index(whole[2][2:4])]]
    assert results[0].token_counts.output_tokens == 8
    assert "without a meaning here: modality" in caplog.text

    settings[2] = {"temperature": 1.5, "do_sample": True}
    drawn = ask("generate_until", "", lambda doc: doc, settings[2], 2, "toy", "test")
    first, second = model.generate_until([drawn, drawn])
    sampling = Sampling(temperature=1.5)
    assert first.text == tiny.expected("Hello!", max_new_tokens=8, sampling=sampling).text
    assert first.text != second.text  # repeats are draws of their own

    greedy = whole[0]
    pairs = [(greedy[:3], True), ("zebra", False)]
    scored = model.loglikelihood(
        [ask("loglikelihood", "What?", continuation, lambda doc: [doc[0]["content"][0]["url"]],
             0, "toy", "test") for continuation, _ in pairs]
    )  # fmt: skip
    assert scored[0][0] > scored[1][0]
    assert not scored[1][1]

    with pytest.raises(ConfigError, match="there is no beam search"):
        model.generate_until(
            [ask("generate_until", "", lambda doc: doc, {"num_beams": 3}, 2, "toy", "test")]
        )
    model.task_dict["toy"]["test"] = [
        [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}]
    ]
    with pytest.raises(ConfigError, match=r"toy\[test\]\[0\] messages\[0\].content\[0\]: audio"):
        model.generate_until([ask("generate_until", "", lambda doc: doc, {}, 0, "toy", "test")])


def test_what_does_not_work_is_said(
    lmms_eval: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_class = importlib.import_module("vlmkit.plugins.lmms_eval_model").LmmsEvalModel
    with pytest.raises(ConfigError, match="give either run="):
        model_class()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in one process"):
        model_class(run=str(run))
