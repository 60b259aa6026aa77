"""A chain of stages: printed, run, stopped and gone on with, at a few steps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vlmkit.build import compose_config, options_of
from vlmkit.recipe import compose_stages

SHORT = [
    "~data.validation.retrieval_256",
    "~data.validation.retrieval_1024",
    "~data.validation.retrieval_4096",
    "~data.validation.group_new_concepts",
    *(f"data.validation.{n}.size=4" for n in ("caption_new_artist", "group_new_artist")),
    "data.validation.count_new_concepts.size=4",
    *("trainer.max_steps=2", "planner.samples_per_step=4", "data.num_workers=0"),
    *("checkpointing.every_n_steps=1", "samples_per_source=0", "trainer.log_every_n_steps=1"),
]
RECIPE = f"""# @package _global_
size: qwen3vl_tiny
stages:
  align:
    takes: []
    overrides: {json.dumps(["model=${size}", "stage=toy_s0", *SHORT])}
  all:
    takes: ["*"]
    overrides: {json.dumps(["model=${size}", "stage=toy_s1", "score_before=false", *SHORT])}
panels:
  captions:
    unit: nats
    lines: {{caption: caption_new_artist/answer_nll}}
  groups:
    unit: exact match
    lines: {{group: group_new_artist/exact_match}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "mine" / "recipe").mkdir(parents=True)
    (folder / "mine" / "recipe" / "two.yaml").write_text(RECIPE)
    return folder


def recipe(work: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vlmkit.recipe", "--config-dir", "mine", "recipe=two", *arguments],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_chain_runs_stage_by_stage_and_goes_on(work):
    printed = recipe(work, "run_dir=chain", "plan_only=true")
    assert "merger, fusion" in printed
    assert not (work / "chain").exists()
    recipe(work, "run_dir=chain")
    first, second = work / "chain" / "0-align", work / "chain" / "1-all"
    changed = json.loads((first / "results.json").read_text())["components"]
    same = {name for name, digests in changed.items() if digests["before"] == digests["after"]}
    assert same == {"vision", "embedding", "decoder"}
    assert (work / "chain" / "stages.png").stat().st_size > 0
    digests = json.loads((second / "results.json").read_text())["digests"]
    assert digests == {name: digest["after"] for name, digest in changed.items()}

    weights = load_file(second / "checkpoint" / "model.safetensors")
    for path in sorted((second / "checkpoint").iterdir()):
        path.unlink()
    (second / "checkpoint").rmdir()  # as if it had been killed before it wrote its weights
    again = recipe(work, "run_dir=chain")
    assert "align is finished" in again
    assert "going on from step 2" in again
    for name, tensor in load_file(second / "checkpoint" / "model.safetensors").items():
        assert tensor.equal(weights[name]), name


@pytest.mark.parametrize("name", options_of("recipe"))
def test_every_stage_of_every_recipe_composes(name, tmp_path):
    config = compose_config(
        f"recipe={name}", f"run_dir={tmp_path}", "hydra.run.dir=.", config_name="recipe"
    )
    stages = compose_stages(config)
    assert [stage.name for stage in stages] == list(config.stages)
    for before, after in itertools.pairwise(stages):
        assert after.config.start_from.folder == str(before.folder.path)
