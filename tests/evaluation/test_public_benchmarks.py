"""Every public benchmark reads rows of its published form, asks as written down here, and scores right,
wrong and malformed answers as such."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from tests.commands import run_command
from tests.evaluation.fakes import FakeAnswerer
from tests.evaluation.public_rows import FILES, ODINW, choice, picture, tsv, write_all
from tests.untrained import save_run
from vlmkit.build import CONF_DIR, build, compose_config, options_of
from vlmkit.data.geometry.shapes import (
    Box,
    Box3D,
    Grounding,
    Relative1000,
    TimeSpan,
    grounding_text,
    seconds,
)
from vlmkit.data.record import ImagePart, TextPart, VideoPart
from vlmkit.data.sources.auto import open_table
from vlmkit.data.sources.media import Media
from vlmkit.errors import ConfigError, MediaError
from vlmkit.evaluate import benchmarks_of, main
from vlmkit.evaluation.asks.multiple_choice import MultipleChoice
from vlmkit.evaluation.asks.shown import Pictures
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.evaluator import evaluate
from vlmkit.evaluation.extract.blocks import Block
from vlmkit.evaluation.math_equality import MathEquality, Verdict
from vlmkit.evaluation.metrics.by_kind import Kinded
from vlmkit.evaluation.metrics.detection_sets import OfSet
from vlmkit.evaluation.metrics.grounding import Mask
from vlmkit.evaluation.metrics.multiple_choice import Choice
from vlmkit.evaluation.metrics.yes_no import HallusionQuestion
from vlmkit.evaluation.oriented_boxes import iou_3d, rotation
from vlmkit.evaluation.question import Question, TableQuestions

NAMES = list(FILES)
MALFORMED = ("", "<think>It could be")
NO_ANSWER = (Choice, Box, Mask, TimeSpan, HallusionQuestion, int, float)
"""Targets with which "I cannot tell." is no answer; words could be one to a question that wants words."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    write_all(root)
    return root


@pytest.fixture(scope="module")
def benchmarks(root) -> dict[str, Benchmark]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        config = compose_config(
            f"benchmark=[{','.join(FILES)}]", f"benchmark_root={root}", config_name="evaluate"
        )
        return {benchmark.name: benchmark for benchmark in benchmarks_of(config)}


@pytest.fixture(autouse=True)
def _mathematics_by_text(monkeypatch):
    """math-verify, which starts a process for each metric, is tested with its metric."""

    def equal(self: MathEquality, said: str, gold: str) -> Verdict:
        numbers = [re.sub(r"[^\d.]", "", text) for text in (said, gold)]
        if not numbers[1]:
            return Verdict.BAD_TRUTH
        same = numbers[0] == numbers[1]
        return (Verdict.EQUAL if same else Verdict.DIFFERENT) if numbers[0] else Verdict.UNREADABLE

    monkeypatch.setattr(MathEquality, "__call__", equal)


def right(target: Any) -> str:
    """What a good model would write."""
    match target:
        case Kinded():
            return right(target.target)
        case Choice():
            return f"It shows that. The answer is {sorted(target.answers)[0]}."
        case HallusionQuestion():
            return target.answer.title()
        case Box():
            return grounding_text([Grounding(target, "it")], Relative1000())
        case Mask():
            rows, columns = np.nonzero(target.inside)
            height, width = target.inside.shape
            middle = [(columns.mean() + 0.5) / width * 1000, (rows.mean() + 0.5) / height * 1000]
            return json.dumps([{"point_2d": middle, "label": "it"}])
        case TimeSpan():
            return grounding_text([Grounding(target)], time=seconds)
        case int() | float() | str():
            return str(target)
        case OfSet():
            return grounding_text(target.items, Relative1000())
        case [Grounding(), *_]:
            return grounding_text(target, Relative1000())
        case [Block(), *_]:
            written = {"text": "{}", "formula": "$$ {} $$", "table": "{}"}
            return "\n\n".join(written[block.kind].format(block.text) for block in target)
        case [str() as first, *_]:
            return first
    raise AssertionError(f"no answer is known for {target!r}")


def wrong(target: Any) -> str:
    """An answer of the right form that is not right."""
    match target:
        case Kinded():
            return wrong(target.target)
        case Choice():
            return next(letter for letter in target.options if letter not in target.answers)
        case HallusionQuestion():
            return "No" if target.answer == "yes" else "Yes"
        case Box():
            return '[{"bbox_2d": [990, 990, 1000, 1000], "label": "it"}]'
        case Mask():
            return '[{"point_2d": [999, 1], "label": "it"}]'
        case TimeSpan():
            return '{"start": 900.0, "end": 901.0}'
        case [Grounding(shape=Box3D()) as item, *_]:
            return json.dumps([{"bbox_3d": [9, 9, 90, 1, 1, 1, 0, 0, 0], "label": item.label}])
        case OfSet():
            label = target.items[0].label
            return json.dumps([{"bbox_2d": [990, 990, 1000, 1000], "label": label}])
        case "yes":
            return "no"
        case "no":
            return "yes"
        case int() | float():
            return str(10 * target)
        case str() | [str() | Block(), *_]:
            return "777"
    raise AssertionError(f"no answer is known for {target!r}")


def clicked(text: str) -> str:
    """A box as the call of a tool that clicks into its middle."""
    x1, y1, x2, y2 = json.loads(text)[0]["bbox_2d"]
    call = {"action": "left_click", "coordinate": [(x1 + x2) / 2, (y1 + y2) / 2]}
    return f'<tool_call>\n{{"name": "computer_use", "arguments": {json.dumps(call)}}}\n</tool_call>'


def questions_of(benchmark: Benchmark) -> list[Question]:
    return [benchmark.questions[i] for i in range(len(benchmark.questions))]


def user_turn(question: Question) -> str:
    """Text as text, pictures and videos as their kind."""
    turn = next(m for m in question.conversation.messages if m.role == "user")
    return "".join(
        part.text if isinstance(part, TextPart) else f"<{type(part).__name__.removesuffix('Part')}>"
        for part in turn.parts
    )


def test_all_are_options_and_stand_in_the_documentation():
    assert set(FILES) <= set(options_of("benchmark"))
    page = (CONF_DIR.parent / "docs" / "how-to-evaluate.md").read_text()
    assert [name for name in FILES if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("name", NAMES)
def test_right_wrong_and_malformed_answers(benchmarks, tmp_path, name):
    benchmark = benchmarks[name]
    questions = questions_of(benchmark)
    assert questions
    for question in questions:
        for part in question.conversation.parts:
            if isinstance(part, ImagePart):
                assert part.image.size() == (20, 40)
    write = clicked if name == "screenspot_pro" else str
    answers: Mapping[str, Any] = {q.key: write(right(q.target)) for q in questions}
    if benchmark.decoding.samples > 1:
        answers = {key: [text] * benchmark.decoding.samples for key, text in answers.items()}
    result = evaluate(benchmark, FakeAnswerer(answers), tmp_path)
    assert result.score.value == pytest.approx(0 if name.startswith("omnidocbench") else 1)
    assert result.score.parse_failures == 0
    metric = benchmark.metrics[benchmark.primary]
    for question in questions:
        row, failed = metric.scored(write(wrong(question.target)), question.target)
        assert (row[0], failed) == (0, False)
        target = question.target.target if isinstance(question.target, Kinded) else question.target
        no_answer = ("I cannot tell.",) if isinstance(target, NO_ANSWER) else ()
        for text in (*MALFORMED, *no_answer):
            row, failed = metric.scored(text, question.target)
            assert (row[0], failed) == (0, True), text


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_printed_beside_published_numbers(benchmarks, name):
    benchmark = benchmarks[name]
    assert benchmark.published is not None
    scaled = benchmark.published.scaled()
    assert set(scaled) <= {"instruct", "thinking"}
    for by_size in scaled.values():
        assert set(by_size) == {"235b-a22b", "32b", "30b-a3b", "8b", "4b", "2b"}
        assert all(0 < value < 1 for value in by_size.values())
    assert benchmark.chance is None or 0 < benchmark.chance < 1
    assert len(benchmark.questions.fingerprint) == 16


CUP_HAT = "A. a cup\nB. a hat\nC. a cat\nD. a dog"
ROTATED = "A. a hat\nB. a cat\nC. a dog\nD. a cup"
SELECT = "Please select the correct answer from the options above."
PROMPTS = {
    "mmmu": [
        f"Question: Is <Image> like <Image>?\nOptions:\n{CUP_HAT}\n{SELECT}",
        "<Image>Question: How much?\nSay.\n"
        "Answer the question using a single word, number or phrase.",
    ],
    "mmbench_en": [
        f"<Image>Hint: Look.\nQuestion: What is it?\nOptions:\n{CUP_HAT}\n{SELECT}",
        f"<Image>Hint: Look.\nQuestion: What is it?\nOptions:\n{ROTATED}\n{SELECT}",
    ],
    "mmbench_cn": [
        f"<Image>提示：Look.\n问题：What is it?\n选项：\n{CUP_HAT}\n请直接回答正确选项的字母。"
    ],
    "docvqa": ["<Image>Which colour?\nAnswer the question using a single word or phrase."],
    "refcoco": [
        '<Image>Locate every object that matches the description "left hat" in the image. '
        "Report bbox coordinates in JSON format."
    ],
    "odinw13": [
        "<Image>Locate every instance that belongs to the following categories: Fire-truck, dog. "
        "Report bbox coordinates and labels in JSON format."
    ],
    "sunrgbd": [
        "<Image>Find all chair in this image. For each, give its 3D bounding box in JSON format: "
        '[{"bbox_3d": [x_center, y_center, z_center, x_size, y_size, z_size, roll, pitch, yaw], '
        '"label": "chair"}].'
    ],
    "charades_sta": [
        "<Video>Query: person turn a light on.\nWhen does this happen in the video? "
        'Give the start and end in seconds, in JSON format: {"start": 1.5, "end": 4.0}.'
    ],
    "muirbench": [f"Question: Which comes after <Image>?\nOptions:\nA. <Image>\nB. none\n{SELECT}"],
    "robospatial_home": [
        "<Image>Where is free space? Report the point coordinates in JSON format like this: "
        '[{"point_2d": [x, y], "label": "name"}].',
        "<Image>Can it fit?",
    ],
    "video_mme": [
        "<Video>How many?\nOptions:\nA. 1.\nB. 2.\nC. 3.\nD. 4.\n"
        "Answer with the letter of the correct option only."
    ],
    "video_mmmu": [
        f"<Video>Question: What is it?\nOptions:\nA. red\nB. blue\n{SELECT}",
        f"<Video>Question: What is it?\nOptions:\nA. red\nB. blue\n{SELECT}",
        f"<Video>Question: And <Image>?\nOptions:\nA. red\nB. blue\n{SELECT}",
    ],
    "aime25": ["Find $n$.\nThink step by step, and put your final answer in \\boxed{}."],
    "screenspot_pro": ["<Image>save the file"],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(benchmarks, name):
    questions = questions_of(benchmarks[name])
    wanted = PROMPTS[name]
    assert [user_turn(question) for question in questions][: len(wanted)] == wanted


def test_thinking_checkpoints_are_asked_and_sampled_otherwise(root, benchmarks):
    config = compose_config(
        "benchmark=[video_mme]",
        "edition=thinking",
        f"benchmark_root={root}",
        config_name="evaluate",
    )
    (thinking,) = benchmarks_of(config)
    instruct = benchmarks["video_mme"]
    assert user_turn(thinking.questions[0]).endswith(
        "Think step by step, then give the letter of the correct option."
    )
    assert thinking.decoding.max_new_tokens == 40960
    assert instruct.decoding.sampling.temperature == 0
    assert benchmarks["mmmu"].decoding.sampling.presence_penalty == 1.5
    ours, theirs = (b.spec(FakeAnswerer({}), None, 0) for b in (instruct, thinking))
    assert ours.protocol != theirs.protocol


def test_rows_that_are_no_questions_are_left_out(benchmarks):
    assert [q.key for q in questions_of(benchmarks["mmmu"])] == ["choice/2", "open/3"]
    assert len(benchmarks["mmlu_redux"].questions) == 1
    assert len(benchmarks["hallusionbench"].questions) == 2
    assert questions_of(benchmarks["mmlu_redux"])[0].categories == {"subject": "anatomy"}
    (page,) = questions_of(benchmarks["omnidocbench_en"])
    assert [block.text for block in page.target] == [
        *("Of Hats", "x^2 + 1", "<table><tr><td>a</td><td>b</td></tr></table>", "They are worn.")
    ]
    circular = questions_of(benchmarks["mmbench_en"])
    assert [q.key for q in circular] == ["7+0", "7+1", "7+2", "7+3", "8+0", "8+1"]
    assert [q.target.answer for q in circular] == ["B", "A", "D", "C", "A", "B"]
    assert {q.group for q in circular} == {"7", "8"}
    assert [q.target[0].label for q in questions_of(benchmarks["hypersim"])] == [
        "chair",
        "night stand",
    ]


def test_one_rotation_that_is_missed_takes_the_credit_of_its_question(benchmarks, tmp_path):
    benchmark = benchmarks["mmbench_en"]
    answers = {q.key: right(q.target) for q in questions_of(benchmark)}
    result = evaluate(benchmark, FakeAnswerer({**answers, "7+2": "A"}), tmp_path)
    assert result.score.value == 0.5
    assert result.chance == pytest.approx((0.25**4 + 0.5**2) / 2)  # as the metric knows it


def test_parts_count_alike_however_many_questions_they_have(benchmarks, tmp_path):
    benchmark = benchmarks["video_mmmu"]
    questions = questions_of(benchmark)
    assert sorted(q.categories["track"] for q in questions) == [
        *("Adaptation", "Adaptation", "Comprehension", "Perception")
    ]
    answers = {q.key: right(q.target) for q in questions if q.categories["track"] != "Perception"}
    result = evaluate(benchmark, FakeAnswerer(answers), tmp_path)
    assert result.score.value == pytest.approx(2 / 3)
    assert result.scores["accuracy"].parts["score"][0] == pytest.approx(3 / 4)


def test_the_mean_over_sets_is_that_of_their_own_maps(benchmarks, tmp_path):
    benchmark = benchmarks["odinw13"]
    answers = {q.key: right(q.target) for q in questions_of(benchmark)}
    missed = {"aquarium/3": wrong(benchmark.questions[0].target), "pothole/3": "[]"}
    result = evaluate(benchmark, FakeAnswerer({**answers, **missed}), tmp_path)
    assert result.score.value == pytest.approx(11 / 13)
    by_set = {name: score.value for name, score in result.by_category["set"].items()}
    assert by_set == {name: 0 if f"{name}/3" in missed else 1 for name in ODINW}


def test_an_order_of_options_is_drawn_for_each_question_and_always_the_same(benchmarks, root):
    def letters(benchmark: Benchmark) -> list[str]:
        return [str(q.target.answer) for q in questions_of(benchmark)]

    gpqa = partial(
        compose_config, "benchmark=[gpqa]", f"benchmark_root={root}", config_name="evaluate"
    )
    (again,) = benchmarks_of(gpqa())
    assert letters(benchmarks["gpqa"]) == letters(again)
    orders = {
        tuple(
            letters(
                build(gpqa(f"benchmarks.gpqa.questions.ask.shuffle_seed={seed}").benchmarks.gpqa)
            )
        )
        for seed in range(6)
    }
    assert len(orders) > 1
    for question in questions_of(again):
        assert question.target.options[question.target.answer] == "so"


def test_videos_are_cut_and_folders_are_frames(benchmarks):
    _, cut, frames = (
        part
        for question in questions_of(benchmarks["mvbench"])
        for part in question.conversation.parts
        if isinstance(part, VideoPart)
    )
    assert (cut.start_s, cut.end_s) == (1.5, 4)
    assert cut.video.name.endswith("video/star/Charades_v1_480/1.mp4")
    assert frames.video.times_s == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_options_with_the_same_words_are_right_alike(benchmarks):
    (question, *_) = questions_of(benchmarks["mvbench"])
    assert question.target.target.answers == {"A", "C"}


def test_pictures_may_be_files_that_a_table_names(tmp_path, monkeypatch):
    """VLMEvalKit writes such tables for those of more than a GB; pictures lie below a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    named = {"image": "", "image_path": "['one/1.jpg', 'one/2.jpg']"}
    tsv(tmp_path / "a_local.tsv", choice(**named), choice("2", image="", image_path="../3.jpg"))
    for name in ("1.jpg", "2.jpg"):
        picture(tmp_path / "images/one" / name)
    ask = MultipleChoice(shown=Pictures(media=Media(root=tmp_path / "images")))
    questions = TableQuestions(open_table(tmp_path / "a_local.tsv"), ask)
    first = [p.image for p in questions[0].conversation.parts if isinstance(p, ImagePart)]
    assert [image.name.rpartition("images/")[2] for image in first] == ["one/1.jpg", "one/2.jpg"]
    assert [image.size() for image in first] == [(20, 40), (20, 40)]
    with pytest.raises(MediaError, match=r"lies outside the media root"):
        questions[1]


def test_the_tool_of_gui_benchmarks_is_declared(benchmarks):
    conversation = benchmarks["screenspot_pro"].questions[0].conversation
    (tool,) = conversation.tools
    assert tool["function"]["name"] == "computer_use"


def test_turned_boxes_are_read_as_they_are_compared(benchmarks):
    """R_cam turns the box by a quarter about y; sizes are those along its own axes."""
    chair, stand = (q.target[0].shape for q in questions_of(benchmarks["sunrgbd"]))
    assert chair.size_m == stand.size_m == (1.2, 0.8, 0.5)
    np.testing.assert_allclose(rotation(chair), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)
    turned = Box3D(stand.center_m, (0.5, 0.8, 1.2))
    assert iou_3d(chair, turned) == pytest.approx(1)


@pytest.mark.parametrize("name", ["mmstar", "odinw13", "mlvu"])
def test_missing_files_are_named_with_the_place_to_get_them(tmp_path, name):
    config = compose_config(
        f"benchmark=[{name}]", f"benchmark_root={tmp_path}", config_name="evaluate"
    )
    words = {
        "mmstar": r"benchmark mmstar: .*there is no file .*MMStar.tsv.* Get it from https://.*MMStar.tsv",
        "odinw13": r"benchmark odinw13: .*large/test/annotations.* Get it from https://.*GLIP",
        "mlvu": r"benchmark mlvu: .*1_plotQA.json.* Get it from https://.*MVLU, and set benchmark_root",
    }
    with pytest.raises(ConfigError, match=words[name]):
        benchmarks_of(config)


def test_the_folder_of_the_data_is_no_part_of_the_protocol(benchmarks, tmp_path):
    write_all(tmp_path, ["refcoco"])
    config = compose_config(
        "benchmark=[refcoco]", f"benchmark_root={tmp_path}", config_name="evaluate"
    )
    (moved,) = benchmarks_of(config)
    ours, theirs = (b.spec(FakeAnswerer({}), None, 0) for b in (benchmarks["refcoco"], moved))
    assert ours.differences(theirs) == []
    assert ours.protocol == theirs.protocol


def test_a_run_answers_about_pictures_a_video_and_a_screen(root, tmp_path, capsys):
    """From the command line, with a model: interleaved pictures, a video, a declared tool."""
    video = root / "charades_sta/Charades_v1_480/3MSZA.mp4"
    video.parent.mkdir(exist_ok=True)
    shutil.copy(files("vlmkit.assets") / "video/big_buck_bunny.mp4", video)
    code = run_command(
        main,
        f"run={save_run(tmp_path / 'run')}",
        "benchmark=[mmmu,charades_sta,screenspot_pro]",
        f"benchmark_root={root}",
        "max_new_tokens=2",
    )
    assert code == 0, capsys.readouterr().err
    found = {
        result["spec"]["benchmark"]: result
        for result in (json.loads(path.read_text()) for path in tmp_path.rglob("result.json"))
    }
    assert set(found) == {"mmmu", "charades_sta", "screenspot_pro"}
    for result in found.values():
        assert result["unanswered"] == {}
        assert result["prompt_tokens"] > 50
        assert result["published"]["instruct"]["8b"] > 0.5
        assert result["spec"]["prompt"]["questions"]
    assert found["charades_sta"]["by_category"] == {}
    assert set(found["mmmu"]["by_category"]) == {"kind", "subject"}


def columns_renamed(root, name: str, old: str, new: str) -> Sequence[Question]:
    write_all(root, [name])
    (file,) = root.glob("*.tsv")
    file.write_text(file.read_text().replace(old, new, 1))
    config = compose_config(f"benchmark=[{name}]", f"benchmark_root={root}", config_name="evaluate")
    return questions_of(benchmarks_of(config)[0])


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("mmstar", "question", "query", r"MMStar.tsv:2 question: it is missing"),
        ("mmstar", "image", "picture", r"MMStar.tsv:2: there is no picture in image"),
        ("mmstar", "dog\tB\t", "dog\tE\t", r"MMStar.tsv:2 answer: 'E' is no letter of 4 options"),
        ("ai2d", "\tC\t", "\tZ\t", r"AI2D_TEST.tsv:2: there is an option D and none before it"),
        ("hallusionbench", "Yes", "Maybe", r"'Maybe' is neither yes nor no"),
        ("docvqa", "\tanswer", "\tresponse", r"DocVQA_VAL.tsv:2 answer: it is missing"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, name, old, new, words):
    with pytest.raises(ValueError, match=words):
        columns_renamed(tmp_path, name, old, new)
