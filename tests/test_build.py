"""Composition: every option builds, mistakes are named, parts can be swapped from outside."""

from pathlib import Path

import pytest
import torch
from torch import nn

import vlmkit
from tests.samples import PAD_ID, image_example
from vlmkit.build import (
    CONF_DIR,
    build,
    build_model,
    compose_config,
    options_of,
    quote_free_text,
)
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.fusion.base import Fusion

MODEL_GROUPS = ("model", "vision", "language", "position", "rope_scaling", "fusion", "attention")
BUILT_GROUPS = (
    "temporal",
    "template",
    "loss",
    "frame_reader",
    "processor",
    "planner",
    "data",
    "callbacks",
    "schedule",
    "checkpointing",
)
NEEDS = {  # what an option needs beside itself, as its error says
    "model=qwen3vl_tiny": [],
    "language=moe": ["+size.num_experts=8", "+size.num_active_experts=2", "+size.expert_dim=48"],
    "attention=flash": None,  # a package that is not a dependency
}
REPORT_KINDS = (
    *("captions", "interleaved", "knowledge", "ocr", "documents", "grounding"),
    *("spatial", "code", "video", "stem", "agent", "text"),
)


def options(groups) -> list[str]:
    return [f"{group}={option}" for group in groups for option in options_of(group)]


@pytest.mark.parametrize("option", options(MODEL_GROUPS))
def test_every_model_option_builds(option):
    extra = NEEDS.get(option, [])
    if extra is None:
        with pytest.raises(ConfigError, match="flash-attn"):
            build_model(option, device="meta")
        return
    model = build_model(option, *extra, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


@pytest.mark.parametrize("option", options(BUILT_GROUPS))
def test_every_other_option_builds(option, tmp_path):
    group = option.split("=")[0]
    extra = []
    if option == "data=files":
        (tmp_path / "a.txt").write_text("one")
        (tmp_path / "b.txt").write_text("two")
        extra = ["source=text", f"source.table.paths={tmp_path}/*.txt", "split.every=2"]
    if option.startswith("data=s"):  # a stage of the report: its own folders, and its size tables
        for kind in REPORT_KINDS:
            (tmp_path / kind).mkdir()
            line = '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}'
            (tmp_path / kind / "part.jsonl").write_text(line + "\n")
        unit = "data.mixture.unit._target_=vlmkit.data.order.mixture.SampleUnit"
        extra = [f"data_root={tmp_path}", unit, "data.mixture.sizes=null"]
    config = compose_config("model=qwen3vl_tiny", option, *extra, f"run_dir={tmp_path}")
    assert build(config[group])


@pytest.mark.parametrize("option", [*options(["optim", "trainer", "precision", "logger"])])
def test_training_options_compose(option, tmp_path):
    if option == "logger=wandb":
        pytest.importorskip("wandb")
    config = compose_config(option, f"run_dir={tmp_path}")
    group = option.split("=")[0]
    needs_cuda = {"precision=fp8": "fp8", "trainer=gpu": "No supported gpu backend found"}
    if option in needs_cuda and not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=needs_cuda[option]):
            build(config.trainer)
        return
    assert build(config["trainer" if group == "precision" else group]) is not None


def test_every_group_is_tested():
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
    elsewhere = {  # sources: tests/data/sources; debug: test_debug_options; others in tests/training
        *("optim", "trainer", "precision", "logger", "source", "stage", "recipe", "module"),
        *("text_encoder", "compile", "recompute", "lora", "averaging", "guard", "self_checks"),
        *(
            "debug",
            "experiment",
            "parallel",
            "gpu",
            "planning",
            "benchmark",
            "edition",
            "evaluation",
        ),
    }
    assert groups == {*MODEL_GROUPS, *BUILT_GROUPS, *elsewhere}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modle=qwen3vl_8b", "modle: there is no such key. Did you mean .*model"),
        ("model=qwen3vl_8", "no such option. Did you mean model=qwen3vl_8b.*Options: .*qwen3vl_2b"),
        ("size.hiden_dim=3", "size.hiden_dim: .*Did you mean size.hidden_dim"),
        ("fusion=deepstak", "Did you mean fusion=deepstack"),
        ("optim.learning_rate=1", "optim.learning_rate: there is no such key"),
        ("fusion.taped_blocks=[1]", "Did you mean fusion.tapped_blocks"),
        ("fusion=[", r"fusion=\[: this is not an override"),
    ],
)
def test_typos_are_errors_that_name_near_matches(override, words):
    with pytest.raises(ConfigError, match=words):
        compose_config(override)


class Doubled(Fusion):
    """A researcher's own idea."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor
        self.scale = nn.Parameter(torch.full((), factor))

    def reset_parameters(self):
        nn.init.constant_(self.scale, self.factor)

    def forward(self, hidden, layer_idx, visual):
        return hidden * self.scale if layer_idx == 0 else hidden


class Forgetful(Doubled):
    """Built from YAML it would start from whatever the memory holds."""

    def reset_parameters(self):
        pass


def test_a_built_part_replaces_a_configured_one_and_keeps_its_weights():
    model = vlmkit.build_model("model=qwen3vl_tiny", fusion=Doubled(3.0))
    assert float(model.fusion.scale) == 3.0
    batch = collate([[image_example(0)]], pad_id=PAD_ID, merge_size=2)
    plain = vlmkit.build_model("model=qwen3vl_tiny", "fusion=none")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "fusion" not in k})
    assert not torch.allclose(model.logits(batch), plain.logits(batch))


def test_unknown_parts_are_named():
    with pytest.raises(ConfigError, match=r"no part \['fusoin'\]; its parts are .*fusion"):
        build_model("model=qwen3vl_tiny", fusoin=Doubled())


def test_an_option_of_ones_own_lives_outside_the_repository(tmp_path: Path):
    folder = tmp_path / "fusion"
    folder.mkdir()
    (folder / "mine.yaml").write_text("_target_: tests.test_build.Doubled\nfactor: 5.0\n")
    config = compose_config("model=qwen3vl_tiny", "fusion=mine", config_dir=tmp_path)
    model = build_model(config=config)
    assert isinstance(model.fusion, Doubled)
    assert float(model.fusion.scale) == 5.0
    (folder / "bad.yaml").write_text("_target_: tests.test_build.Forgetful\n")
    config = compose_config("model=qwen3vl_tiny", "fusion=bad", config_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"Forgetful.reset_parameters leaves scale unfilled"):
        build_model(config=config)
    with pytest.raises(ConfigError, match="Did you mean fusion=mine"):
        compose_config("fusion=mien", config_dir=tmp_path)


def test_models_start_from_the_same_weights_for_the_same_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model("model=qwen3vl_tiny").parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert weights(0).isfinite().all()


def test_dtype_and_device_are_as_asked():
    model = build_model("model=qwen3vl_tiny", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.position.inv_freq().dtype == torch.float32


@pytest.mark.parametrize(
    "value",
    [
        "Is it red, or blue?",
        "What's this?",
        "How many (in total)?",
        "这是什么?",
        'say "hi"',
        "a\\b\\",
        "cost ${x} $5",
        "x=y",
        '"quoted',
        "[brackets] here",
    ],
)
def test_free_text_arrives_as_it_was_typed(value):
    word = quote_free_text(f"prompt={value}", ["prompt"])
    assert compose_config(word, config_name="generate").prompt == value


def test_free_text_leaves_lists_and_quotes_alone():
    for word in ("image=[a.png,b.png]", "prompt='x'", "prompt=null", "run=a,b"):
        assert quote_free_text(word, ["prompt", "image"]) == word


def test_a_mistake_inside_a_yaml_of_ones_own_is_named(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - qwen3vl_tiny\n  - override /vision: siglip2_tinny\n"
    )
    with pytest.raises(ConfigError, match="siglip2_tinny"):
        compose_config("model=mine", config_dir=tmp_path)
