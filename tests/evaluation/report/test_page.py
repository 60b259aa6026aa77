"""A page that needs nothing, and cannot be taken over by what a model wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.evaluation.report.examples import HOSTILE, evaluated
from tests.inspection.browser import find_browser, report
from vlmkit.evaluation.report.forest import Axis, Mark
from vlmkit.evaluation.report.page import MOST_CHARS, cut, save_report
from vlmkit.evaluation.result import BenchmarkResult
from vlmkit.evaluation.thumbnails import Outcome, drawn, load_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return save_report([folder], folder.parent).read_text()


def test_the_numbers_stand_in_the_page_and_in_json(page, folder):
    result = BenchmarkResult.load(folder)
    for value in (result.score.value, result.score.low, result.score.high, 0.1, 0.534, 0.75):
        assert f"{value:.3f}" in page
    assert result.spec.name in page
    assert result.spec.protocol in page
    found = json.loads((folder.parent / "report.json").read_text(), parse_constant=pytest.fail)
    (benchmark,) = found["benchmarks"]
    assert benchmark["scores"]["exact_match"]["value"] == pytest.approx(0.4)
    assert benchmark["spec"]["protocol"] == result.spec.protocol
    assert benchmark["published"]["instruct"] == pytest.approx({"2b": 0.534, "8b": 0.696})


def test_nothing_of_the_data_is_markup(page):
    assert page.count("<script") == page.count("</script") == 2
    assert "onerror=" not in re.sub(
        r'<script type="application/json".*?</script>', "", page, flags=re.S
    )
    assert "<b>twice</b>" not in page
    assert "<u>odd" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    items = json.loads(data)[0]["items"]
    assert items[5]["texts"] == [HOSTILE]
    assert [item["outcome"] for item in items] == [
        *["right"] * 4,
        *["wrong"] * 4,
        "unread",
        "unanswered",
    ]


def test_pictures_are_small_and_say_what_is_left_out(folder):
    shown = load_pictures(folder)
    assert [len(shown[f"q{i}<b>"].files) for i in range(4)] == [1, 6, 6, 0]
    assert shown["q1<b>"].note == "3 more not shown"
    assert shown["q1<b>"].captions[-1] == "picture 9 of 9"
    assert shown["q2<b>"].captions == ("0.0 s", "0.5 s", "1.5 s", "2.0 s", "3.0 s", "3.5 s")
    assert "nowhere.png: file not found" in shown["q3<b>"].note
    assert "q4<b>" not in shown
    assert sum(path.stat().st_size for path in (folder / "pictures").iterdir()) < 30_000


def test_every_kind_of_failure_is_looked_at():
    outcomes = [Outcome.RIGHT] * 500 + [Outcome.WRONG] * 400 + [Outcome.UNREAD, Outcome.CUT_OFF]
    places = drawn(outcomes, 60, seed=0)
    assert len(places) == len(set(places)) == 60
    assert places == drawn(outcomes, 60, seed=0) != drawn(outcomes, 60, seed=1)
    assert {outcomes[i] for i in places} == {*outcomes}
    assert drawn(outcomes[:7], 60, seed=0) == list(range(7))


def test_places_on_the_axis():
    axis = Axis.covering([0.21, float("nan"), 0.79], always=[0, 1])
    assert (axis.low, axis.high) == (0, 1)
    mark = Mark.on(axis, 0.5, float("nan"), 0.75, others=[(0.25, "x")], line=None)
    assert mark == Mark(value=50, low=None, high=75, others=((25, "x"),), line=None)
    assert Axis.covering([]).ticks


def test_a_long_text_says_what_is_missing():
    assert cut("x" * (MOST_CHARS + 1234)).endswith("… and 1,234 characters more")


@pytest.mark.skipif(find_browser() is None, reason="no browser")
def test_in_a_browser(page, tmp_path):
    script = """
    const at = (id) => document.getElementById(id);
    const cards = () => [...document.querySelectorAll("article")].map((card) => card.className);
    const choose = (id, value) => {
      at(id).value = value;
      at(id).dispatchEvent(new Event("input"));
      return cards();
    };
    return {
      title: document.title, all: cards(), answers: document.querySelectorAll(".answer")[5].textContent,
      images: [...document.querySelectorAll("img")].every((image) => image.naturalWidth > 0),
      pictures: document.querySelectorAll("figure").length,
      unread: choose("outcome", "unread"), wrong: choose("outcome", "!right").length,
      found: choose("find", "2 * 7?"), width: [document.documentElement.scrollWidth, innerWidth],
    };
    """
    seen = report(page, script, tmp_path)
    assert seen["trouble"] == []
    assert seen["fetched"] == []
    found = seen["found"]
    assert found["title"] == "a model: 1 benchmark"
    assert len(found["all"]) == 10
    assert found["answers"] == HOSTILE
    assert found["images"]
    assert found["pictures"] == 2 * (1 + 6 + 6)
    assert found["unread"] == ["unread"]
    assert found["wrong"] == 6
    assert found["found"] == ["wrong"]
    assert found["width"][0] <= found["width"][1]
