"""The generation benchmark compares the same work, and ends with one JSON line."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("transformers")

from benchmarks import generation, ragged_generation
from benchmarks.generation import Contest, Work

from vlmkit.checkpoint.parity_cases import Image
from vlmkit.models.generation import Budget, Sampling

TINY = ("model=qwen3vl_tiny",)


@pytest.fixture(scope="module")
def contest():
    return Contest(TINY)


def test_other_tokens_are_noticed(contest, monkeypatch):
    work = Work(prompts=[[6], [9]], new_tokens=4)
    contest.check(work)
    run = contest.run_theirs
    monkeypatch.setattr(contest, "run_theirs", lambda *a: [row[::-1] for row in run(*a)])
    with pytest.raises(AssertionError, match="greedy tokens differ"):
        contest.check(work)


def test_both_make_as_many_samples(contest):
    work = Work(prompts=[[4, Image(2, 2), 3]], samples=3, new_tokens=4)
    inputs, prompts = contest.inputs(work)
    how = Sampling(temperature=1.0)
    for made in (contest.run_ours(prompts, work, how), contest.run_theirs(inputs, work, how)):
        assert [len(row) for row in made] == [4, 4, 4]


def test_the_rollout_prompt_is_as_long_as_stated(contest):
    work = generation.cases(128, 32)["rollout"]["rollout"]
    inputs, _ = contest.inputs(work)
    assert inputs["input_ids"].shape == (1, 1200)


def test_the_last_line_is_json(monkeypatch, capsys):
    small = {"decode": {"decode_2": Work(prompts=[[5], [5]], new_tokens=3)}, "rollout": {}}
    monkeypatch.setattr(generation, "cases", lambda *_: small)
    monkeypatch.setattr(generation, "SMALL", TINY)
    monkeypatch.setattr(sys, "argv", ["generation", "--rounds", "2"])
    generation.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last) == {"decode_2"}
    assert len(last["decode_2"]["spread"]) == 2


def test_ragged_answers_are_the_same_in_both_ways(contest):
    requests = ragged_generation.make_requests(contest.ours, 9, mean=4, most=12)
    budget = Budget(max_rows=3, kv_tokens=None)
    found = ragged_generation.continuous(contest.ours, requests, budget)
    assert found == ragged_generation.by_batch(contest.ours, requests, budget)
    assert len({len(answer.token_ids) for answer in found}) > 2
