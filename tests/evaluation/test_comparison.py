"""Two evaluations of the same questions: numbers by hand, and nothing is compared that is not alike."""

from __future__ import annotations

import json
import math

import pytest

from tests.commands import run_command
from tests.evaluation.fakes import Doublings, FakeAnswerer, doublings
from tests.evaluation.report.examples import evaluated
from vlmkit.compare import main
from vlmkit.errors import UserError
from vlmkit.evaluation.comparison import paired
from vlmkit.evaluation.evaluator import evaluate


def answered(folder, right, count=40, **parts):
    """The first `right` of so many questions, answered right."""
    answers = {f"q{i}": str(2 * i) if i in right else "no" for i in range(count)}
    benchmark = doublings(questions=Doublings(count), **parts)
    evaluate(benchmark, FakeAnswerer(answers), folder)
    return folder


def test_a_difference_by_hand(tmp_path):
    a = answered(tmp_path / "a", range(0, 20))
    b = answered(tmp_path / "b", range(2, 32))
    (row,) = paired(a, b)
    assert (row.a, row.b, row.mean_a, row.mean_b) == (0.5, 0.75, 0.5, 0.75)
    assert (row.found.n, row.found.wins, row.found.losses) == (40, 12, 2)
    assert row.found.difference.value == 0.25
    assert 0 < row.found.difference.low < 0.25 < row.found.difference.high
    exact = (
        2 * sum(math.comb(14, k) for k in range(3)) / 2**14
    )  # binomial, 12 of 14 or more extreme
    assert row.found.mcnemar_p == pytest.approx(exact)
    assert row.p_holm == row.found.p_value == pytest.approx(exact, abs=0.005)
    assert row.verdict == "b is better"
    (back,) = paired(b, a)
    assert back.verdict == "a is better"
    assert back.found.difference.value == -0.25


def test_a_small_difference_is_not_one(tmp_path):
    a, b = answered(tmp_path / "a", range(20)), answered(tmp_path / "b", range(1, 22))
    (row,) = paired(a, b)
    assert row.found.difference.low < 0 < row.found.difference.high
    assert row.verdict == "no difference shown"
    few = [answered(tmp_path / name, range(n), count=3) for name, n in (("none", 0), ("all", 3))]
    (all_of_three,) = paired(*few)  # an interval that is one point, 1
    assert not all_of_three.covers_zero
    assert all_of_three.verdict == "no difference shown"
    (same,) = paired(a, a)
    assert same.verdict == "no difference shown"
    assert same.found.difference.value == 0


def test_many_benchmarks_are_corrected(tmp_path):
    for i in range(4):
        answered(tmp_path / "a", range(0, 20), name=f"set{i}")
        answered(tmp_path / "b", range(0, 26), name=f"set{i}")
    rows = paired(tmp_path / "a", tmp_path / "b")
    assert [row.benchmark for row in rows] == [f"set{i}" for i in range(4)]
    assert all(row.found.p_value == pytest.approx(2 / 2**6) for row in rows)
    assert all(row.p_holm == pytest.approx(8 / 2**6) for row in rows)
    assert {row.verdict for row in rows} == {"b is better, not after Holm's correction"}


def test_other_protocols_are_refused_and_marked(tmp_path):
    a = answered(tmp_path / "a", range(20))
    b = answered(tmp_path / "b", range(30), count=30)
    with pytest.raises(UserError, match=r"doublings: data.items was 30, now it is 40"):
        paired(a, b)
    (row,) = paired(a, b, different=True)
    assert row.found.n == 30
    assert row.found.dropped == 10
    assert any("data.items" in line for line in row.differences)
    other = answered(tmp_path / "c", range(30), name="another")
    with pytest.raises(UserError, match="no benchmark is in both"):
        paired(a, other)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, right in (("a", 2), ("b", 8)):
        evaluated(tmp_path / name, right=right, name=f"<i>{name}</i>")
    assert run_command(main, "a=a", "b=b", "name_a=one", "name_b=<b>two</b>, really") == 0
    printed = capsys.readouterr().out
    assert "doublings" in printed
    assert "comparison.html" in printed
    page = (tmp_path / "comparison/comparison.html").read_text()
    assert "&lt;b&gt;two&lt;/b&gt;, really" in page
    assert "+0.600" in page
    found = json.loads((tmp_path / "comparison/comparison.json").read_text())
    assert found["benchmarks"][0]["found"]["difference"]["value"] == pytest.approx(0.6)
    assert found["benchmarks"][0]["found"]["mcnemar_p"] == pytest.approx(2 / 2**6)
    assert run_command(main, "a=a") == 2
    assert "b: give a folder of evaluations" in capsys.readouterr().err
    assert run_command(main, "a=a", "b=nowhere") == 2
    assert "b=nowhere: there is no such folder" in capsys.readouterr().err
