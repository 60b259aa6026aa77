"""`python -m vlmkit.evaluate` on a run, twice, and on what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.untrained import save_run
from vlmkit.data.quickstart.emoji import EmojiSet
from vlmkit.data.quickstart.questions import Group
from vlmkit.data.quickstart.sources import ClipSource, EmojiSource
from vlmkit.evaluate import main
from vlmkit.evaluation.answerer import ModelAnswerer
from vlmkit.evaluation.decoding import Budget as EvalBudget
from vlmkit.evaluation.decoding import Decoding
from vlmkit.evaluation.question import SourceQuestions
from vlmkit.evaluation.samples import answer
from vlmkit.models.generation import Sampling
from vlmkit.runs import load_run


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
    page = (run / "evaluations/report.html").read_text()
    assert all(result["spec"]["name"] in page for result in results)
    assert len(json.loads((run / "evaluations/report.json").read_text())["benchmarks"]) == 4
    before = {path: path.read_text() for path in run.rglob("responses.jsonl")}
    assert run_command(main, *arguments) == 0
    assert {path: path.read_text() for path in run.rglob("responses.jsonl")} == before


def test_answers_are_those_to_each_question_alone(run):
    loaded = load_run(run)
    answerer = ModelAnswerer(loaded.model, loaded.processor, "tiny", batch_rows=3, window=4)
    source = SourceQuestions(ClipSource("clip", 60, held_out=True, seed=1))
    drawings = SourceQuestions(
        EmojiSource(EmojiSet("held_out", ["noto"]), Group(), "group", 60), key="group"
    )
    questions = [*(source[i] for i in range(2)), *(drawings[i] for i in range(5))]
    decoding = Decoding(max_new_tokens=4)
    found = {r.key: r for r in answerer.answer(questions, decoding, EvalBudget())}
    assert found.keys() == {question.key for question in questions}
    for question in questions:
        alone = answer(loaded.model, loaded.processor, question.conversation, 4)
        assert found[question.key].texts == (alone,)
    drawn = Decoding(max_new_tokens=4, samples=3, sampling=Sampling(temperature=2.0, seed=5))
    several = {r.key: r.texts for r in answerer.answer(questions, drawn, EvalBudget())}
    (again,) = answerer.answer(questions[3:4], drawn, EvalBudget())
    assert several[again.key] == again.texts
    assert len({text for texts in several.values() for text in texts}) > len(questions)


def test_built_in_benchmarks_are_asked(run, tmp_path):
    """Drawn pictures, pages and videos go through the run's own processor."""
    needles = [
        f"benchmarks.{name}.{setting}"
        for name in ("needle_image_object", "needle_video_text")
        for setting in (
            *("questions.kind.lengths=[4]", "metrics.needle.lengths=[4]"),
            *("questions.size=5", "questions.seed=3"),
        )
    ]
    dropped = [
        f"~benchmarks.{name}"
        for name in (
            *("needle_image_text", "needle_image_number", "needle_document"),
            *("needle_video_object", "needle_video_number"),
        )
    ]
    arguments = ["benchmark=[needle_image,needle_video,synthetic_moments,synthetic_grounding]"]
    arguments += [
        f"run={run}",
        "limit=2",
        "max_new_tokens=2",
        f"out={tmp_path}",
        *needles,
        *dropped,
    ]
    assert run_command(main, *arguments) == 0
    found = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    assert [result["spec"]["benchmark"] for result in found] == [
        *("needle_image_object", "needle_video_text", "synthetic_moments", "synthetic_grounding")
    ]
    for result in found:
        assert result["unanswered"] == {}
        assert 0 < result["new_tokens"] <= 4
        pictures = list((tmp_path / result["folder"] / "pictures").glob("*.webp"))
        of_each = {"synthetic_grounding": 1, "synthetic_moments": 6}
        assert len(pictures) == 2 * of_each.get(result["spec"]["benchmark"], 4)
    assert (tmp_path / found[0]["folder"] / "heat_map.png").is_file()


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
