"""`python -m vlmkit.evaluate` on a run, twice, and on what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.untrained import save_run
from vlmkit.evaluate import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("evaluated") / "run")


def test_a_run_is_evaluated_on_its_held_out_questions(run, capsys):
    arguments = [f"run={run}", "benchmark=quickstart", "limit=3", "max_new_tokens=3"]
    assert run_command(main, *arguments) == 0
    printed = capsys.readouterr().out
    assert "quickstart_clip_new_moments" in printed
    results = [json.loads(path.read_text()) for path in run.rglob("result.json")]
    assert len(results) == 4
    for result in results:
        assert result["scores"]["exact_match"]["n"] == 3
        assert result["unanswered"] == {}
        assert 0 < result["new_tokens"] <= 9
        assert result["prompt_tokens"] > 0
        assert result["spec"]["checkpoint"]
    before = {path: path.read_text() for path in run.rglob("responses.jsonl")}
    assert run_command(main, *arguments) == 0
    assert {path: path.read_text() for path in run.rglob("responses.jsonl")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of run="),
        (["run=here", "checkpoint=there"], "given: run, checkpoint"),
        (["run=nowhere"], "nowhere is not a run folder"),
        (["benchmark=quickstar", "run=x"], "quickstart"),
    ],
)
def test_what_is_wrong_is_said(arguments, message, capsys):
    assert run_command(main, *arguments) == 2
    assert message in capsys.readouterr().err
