"""A score says what it is a score of, an evaluation goes on where it stopped, nothing is credited by luck."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.fakes import Doublings, FakeAnswerer, doublings
from vlmkit.errors import ConfigError, UserError
from vlmkit.evaluation.answerer import RecordedAnswers
from vlmkit.evaluation.decoding import Budget, Decoding
from vlmkit.evaluation.evaluator import Share, evaluate, natural
from vlmkit.evaluation.result import BenchmarkResult, load_items, results_in
from vlmkit.models.generation import Sampling

RIGHT = {f"q{i}": str(2 * i) for i in range(6)}


def test_a_score_by_hand(tmp_path):
    answers = {**RIGHT, "q0": None, "q1": " 2 ", "q2": "<think>4</think>5", "q3": "<think>6"}
    result = evaluate(doublings(), FakeAnswerer(answers), tmp_path)
    assert result.score.value == pytest.approx(3 / 6)  # q1, q4, q5
    assert result.score.n == 6
    assert result.score.parse_failures == pytest.approx(
        2 / 6
    )  # no picture; reasoning without an end
    assert result.score.low < 0.5 < result.score.high
    assert result.unanswered == {"unreadable": 1}
    kinds = {name: score.value for name, score in result.by_category["kind"].items()}
    assert kinds == pytest.approx({"even": 1 / 3, "odd": 2 / 3})
    (folder,) = results_in(tmp_path).values()
    assert BenchmarkResult.load(folder) == result
    items = {item.key: item for item in load_items(folder)}
    assert items["q1"].scores["exact_match"].score == 1
    assert items["q0"].error == "unreadable: a.png is damaged"
    assert items["q0"].scores["exact_match"].failed


def test_reasoning_that_the_prompt_has_opened_is_no_answer(tmp_path):
    answerer = FakeAnswerer({**RIGHT, "q0": "so it is\n</think>\n\n0", "q1": "2"})
    answerer.opens_thinking = True
    result = evaluate(doublings(questions=Doublings(2)), answerer, tmp_path)
    assert result.score.value == 0.5
    assert result.score.parse_failures == 0.5


def test_it_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(doublings(), FakeAnswerer(RIGHT, most=3), tmp_path)
    (file,) = tmp_path.rglob("responses.jsonl")
    with file.open("a") as half:
        half.write('{"key": "q3", "texts": ["')  # the process died while it wrote
    second = FakeAnswerer(RIGHT)
    assert evaluate(doublings(), second, tmp_path).score.value == 1
    assert second.asked == ["q3", "q4", "q5"]
    third = FakeAnswerer(RIGHT)
    evaluate(doublings(), third, tmp_path)
    assert third.asked == []
    evaluate(doublings(), third, tmp_path, fresh=True)
    assert len(third.asked) == 6


def test_processes_share_the_questions(tmp_path):
    first, second = FakeAnswerer(RIGHT), FakeAnswerer(RIGHT)
    with pytest.raises(KeyError):  # the other has not answered yet
        evaluate(doublings(), first, tmp_path, share=Share(1, 2))
    result = evaluate(doublings(), second, tmp_path, share=Share(0, 2))
    assert result.score.n == 6
    assert sorted(first.asked + second.asked) == sorted(RIGHT)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"questions": Doublings(fingerprint="others")}, "data.fingerprint"),
        ({"decoding": Decoding(max_new_tokens=7)}, "decoding.max_new_tokens"),
        ({"decoding": Decoding(samples=2, sampling=Sampling(temperature=1.0))}, "decoding.samples"),
    ],
)
def test_another_protocol_has_another_name(changed, field):
    ours = doublings().spec(FakeAnswerer({}), None, 0)
    theirs = doublings(**changed).spec(FakeAnswerer({}), None, 0)
    assert ours.name != theirs.name
    assert ours.protocol != theirs.protocol
    assert any(line.startswith(field) for line in ours.differences(theirs))
    assert doublings().spec(FakeAnswerer({}), None, 0).name == ours.name


def test_a_subset_is_drawn_and_named(tmp_path):
    benchmark, answerer = doublings(), FakeAnswerer(RIGHT)
    some, others = benchmark.chosen(3, 0), benchmark.chosen(3, 1)
    assert len(some) == len(set(some)) == 3
    assert some != others
    assert benchmark.chosen(99, 0) == range(6)
    assert evaluate(benchmark, answerer, tmp_path, 3).score.n == 3
    assert benchmark.spec(answerer, 3, 0).protocol != benchmark.spec(answerer, None, 0).protocol


def test_samples_of_a_question_are_averaged_and_grouped(tmp_path):
    answers = {f"q{i}": [str(2 * i), "wrong"] for i in range(6)}
    decoding = Decoding(samples=2, sampling=Sampling(temperature=1.0))
    result = evaluate(doublings(decoding=decoding), FakeAnswerer(answers), tmp_path)
    assert result.score.value == 0.5
    assert result.score.low == result.score.high == 0.5  # every question is half right


def test_numbers_in_names_are_in_order():
    assert sorted(["16", "100%", "4", "b", "25%", "a 2", "a 10"], key=natural) == [
        *("4", "16", "25%", "100%", "a 2", "a 10", "b")
    ]


def test_equal_keys_are_refused(tmp_path):
    class Same(Doublings):
        def __getitem__(self, index):
            return super().__getitem__(0)

    with pytest.raises(UserError, match="two questions have the key q0"):
        evaluate(doublings(questions=Same(2)), FakeAnswerer(RIGHT), tmp_path)


def test_answers_made_elsewhere(tmp_path):
    file = tmp_path / "answers.jsonl"
    lines = [{"key": key, "text": text} for key, text in RIGHT.items() if key != "q5"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = evaluate(doublings(), RecordedAnswers(file), tmp_path / "out")
    assert result.score.value == pytest.approx(5 / 6)
    assert result.unanswered == {"not in the file of answers": 1}
    file.write_text('{"key": "q0"}\n')
    with pytest.raises(ConfigError, match=r"answers.jsonl:1: a line must read"):
        RecordedAnswers(file)


def test_bad_settings_name_the_field(tiny_processor):
    with pytest.raises(ConfigError, match=r"decoding.samples=2 with .*temperature=0"):
        Decoding(samples=2)
    with pytest.raises(ConfigError, match=r"budget.image.max_pixel: there is no such setting"):
        Budget(image={"max_pixel": 3}).applied_to(tiny_processor)
    changed = Budget(image={"max_pixels": 70_000}, video={"fps": 1.0}).applied_to(tiny_processor)
    assert changed.image.max_pixels == 70_000
    assert changed.video.fps == 1.0
    assert tiny_processor.image.max_pixels != 70_000
    with pytest.raises(ConfigError, match="primary=f1 is none of its metrics"):
        doublings(primary="f1")
