"""All built-in benchmarks: the same from the same seed, right answers score 1, guesses score their chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.evaluation.fakes import FakeAnswerer
from tests.evaluation.synthetic.built_in import NAMES, benchmarks, right
from vlmkit.data.record import VideoPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.evaluator import evaluate
from vlmkit.evaluation.question import Question
from vlmkit.evaluation.result import BenchmarkResult
from vlmkit.evaluation.synthetic.counting import CountThings
from vlmkit.evaluation.synthetic.generated import GeneratedQuestions, pictures
from vlmkit.evaluation.synthetic.needle_pictures import NeedleInPictures
from vlmkit.evaluation.synthetic.needles import NumberNeedle, ThingNeedle, WordNeedle


@pytest.fixture(params=NAMES)
def benchmark(request) -> Benchmark:
    return benchmarks()[request.param]


def mean_score(benchmark: Benchmark, answers: list[tuple[str, Question]]) -> float:
    metric = benchmark.metrics[benchmark.primary].clone()
    metric.num_resamples = 0
    for i, (text, question) in enumerate(answers):
        metric.update(text, question.target, i)
    return float(metric.compute().value)


def drawn(question: Question, count: int = 2) -> bytes:
    return b"".join(
        image.open().tobytes()
        for image, _ in zip(pictures(question.conversation), range(count), strict=False)
    )


def test_every_file_is_here():
    assert set(benchmarks()) == set(NAMES)
    for name, benchmark in benchmarks().items():
        assert benchmark.name == name
        assert benchmark.about.startswith("generated; ")


def test_the_same_seed_gives_the_same_bytes(benchmark):
    questions = benchmark.questions
    again = GeneratedQuestions(questions.kind, questions.size, questions.seed)
    other = GeneratedQuestions(questions.kind, questions.size, questions.seed + 1)
    for i in (0, len(questions) - 1):
        a, b, c = questions[i], again[i], other[i]
        assert (a.key, a.target, a.conversation.question) == (
            b.key,
            b.target,
            b.conversation.question,
        )
        first = drawn(a)
        assert first == drawn(b)
        assert first != drawn(c)
    for image in list(pictures(questions[1].conversation))[:2]:
        assert image.size() == image.open().size[::-1]
    assert len({questions[i].key for i in range(len(questions))}) == len(questions)
    with pytest.raises(IndexError):
        questions[len(questions)]


def test_fingerprints_name_the_data():
    kind = CountThings()
    prints = {
        GeneratedQuestions(*arguments).fingerprint
        for arguments in [(kind, 5, 0), (kind, 5, 1), (kind, 6, 0), (CountThings(width=500), 5, 0)]
    }
    assert len(prints) == 4
    assert (
        GeneratedQuestions(kind, 5).fingerprint == GeneratedQuestions(CountThings(), 5).fingerprint
    )


def test_the_truth_is_right_and_anything_else_is_not(benchmark):
    asked = [benchmark.questions[i] for i in range(12)]
    assert mean_score(benchmark, [(right(q), q) for q in asked]) == 1
    for nonsense in ("I cannot see anything.", "", "[]", "{}", "yes no maybe"):
        found = mean_score(benchmark, [(nonsense, q) for q in asked])
        assert found < 0.01 if benchmark.primary == "document" else found == 0
    every = "\n".join(right(benchmark.questions[i]) for i in range(40, 80))
    if benchmark.primary not in (
        "box",
        "moments",
        "document",
    ):  # which read the first box or stretch
        assert mean_score(benchmark, [(every, q) for q in asked]) == 0


def guesses(benchmark: Benchmark, count: int) -> list[tuple[str, Question]]:
    """Blind answers: any of the possible ones."""
    rng = np.random.default_rng(7)
    kind = benchmark.questions.kind
    asked = [
        benchmark.questions[int(i)] for i in rng.integers(len(benchmark.questions), size=count)
    ]
    if benchmark.primary == "box":
        return [(str(rng.choice(q.conversation.meta["choices"])), q) for q in asked]
    if benchmark.primary == "counting":
        return [(str(rng.integers(1, kind.most + 1)), q) for q in asked]
    if benchmark.name == "needle_document":
        return [(str(rng.integers(kind.smallest, kind.largest + 1)), q) for q in asked]
    return [(kind.needle.answers(rng, 1)[0], q) for q in asked]


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "needle" in n] + ["synthetic_counting", "synthetic_grounding"]
)
def test_guessing_reaches_the_stated_chance(name):
    benchmark = benchmarks()[name]
    n = 300
    found = mean_score(benchmark, guesses(benchmark, n))
    chance = benchmark.chance
    assert chance is not None
    assert abs(found - chance) <= 4 * math.sqrt(chance * (1 - chance) / n)
    if benchmark.primary == "needle":
        assert benchmark.questions[0].target.chance == pytest.approx(chance, abs=1e-4)


def test_the_whole_video_reaches_its_chance():
    benchmark = benchmarks()["synthetic_moments"]
    kind = benchmark.questions.kind
    assert benchmark.chance == kind.chance == 0.25
    asked = [benchmark.questions[i] for i in range(len(benchmark.questions))]
    found = mean_score(benchmark, [(f"0 - {kind.frames / kind.fps} seconds", q) for q in asked])
    deviation = np.std(np.arange(4, 17) / kind.frames) / math.sqrt(len(asked))
    assert abs(found - 0.25) <= 4 * deviation


def red(image) -> int:
    """Pixels in the colour of needles."""
    return int((np.asarray(image.open()) == (0xD1, 0x1F, 0x1F)).all(axis=2).sum())


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n.startswith(("needle_image", "needle_video"))]
)
def test_exactly_one_needle_lies_at_its_depth(name):
    questions = benchmarks()[name].questions
    for index in (5, 6, 9):  # the second length, at depths 0, 0.25 and 1
        question = questions[index]
        marked = [i for i, image in enumerate(pictures(question.conversation)) if red(image) > 150]
        is_video = any(isinstance(part, VideoPart) for part in question.conversation.parts)
        size = 2 if is_video else 1
        place = round(question.target.depth * (question.target.length // size - 1)) * size
        assert marked == list(range(place, place + size))
    cells = {(questions[i].target.length, questions[i].target.depth) for i in range(15)}
    assert len(cells) == 15


def test_a_heat_map_by_hand(tmp_path):
    kind = NeedleInPictures(
        needle=NumberNeedle(), lengths=[4, 16, 64], depths=[0, 0.25, 0.5, 0.75, 1]
    )
    questions = GeneratedQuestions(kind, 30)
    benchmark = benchmarks()["needle_image_number"]
    small = Benchmark("small", questions, benchmark.metrics, "needle", chance=0.0111)
    answers = {
        q.key: right(q) for q in map(questions.__getitem__, range(30)) if q.target.length < 64
    }
    answers |= {"0000": "no idea", "0016": ""}  # length 4 at depth 0 and at 0.25
    result = evaluate(small, FakeAnswerer(answers), tmp_path)
    assert result.heat_map is not None
    assert result.heat_map.accuracy == [[0.5, 0.5, 1, 1, 1], [1] * 5, [0] * 5]
    assert result.heat_map.counts == [[2] * 5] * 3
    assert result.score.value == pytest.approx(18 / 30)
    folder = tmp_path / result.spec.name
    assert (folder / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert BenchmarkResult.load(folder).heat_map == result.heat_map


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NeedleInPictures(needle=WordNeedle(), lengths=[0], depths=[0]),
            r"lengths are \[0\]",
        ),
        (
            lambda: NeedleInPictures(needle=WordNeedle(), lengths=[4], depths=[2]),
            r"depths are \[2\]",
        ),
        (lambda: WordNeedle(words=["猫", "dog"]), "DejaVuSans-Bold has no glyphs for 猫"),
        (lambda: ThingNeedle(things=["cat", "unicorn"]), r"things \['unicorn'\] are not drawn"),
        (lambda: GeneratedQuestions(CountThings(), 0), "questions.size is 0"),
        (
            lambda: GeneratedQuestions(CountThings(most=9, sizes_px=(200, 200)), 9)[8],
            "things of up to 200 pixels do not fit on 512x384",
        ),
        (
            lambda: NeedleInPictures(
                needle=WordNeedle(words=["a", "b"]), lengths=[8], depths=[0.5]
            )(0, np.random.default_rng(0)),
            "a needle and 3 distractors need 4 different answers, there are 2",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
