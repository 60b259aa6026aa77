"""Benchmarks between steps: the run's own processor, and a training that does not notice."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.tiny_runs import SAMPLES, SHORT
from vlmkit.build import build, compose_config
from vlmkit.errors import ConfigError
from vlmkit.evaluation import in_training
from vlmkit.evaluation.in_training import EvaluateInTraining
from vlmkit.evaluation.result import results_in
from vlmkit.job import assemble
from vlmkit.training.parallel.strategy import MeshStrategy

EVALUATED = [
    "evaluation=in_training",
    "callbacks.evaluation.every_n_steps=2",
    "callbacks.evaluation.limit=2",
    "~benchmarks.quickstart_group_new_artist",
    "~benchmarks.quickstart_group_new_concepts",
]


def run(folder, *overrides) -> tuple[Any, Any]:
    config = compose_config(
        *SHORT, *SAMPLES, f"run_dir={folder}", "trainer.max_steps=3", "averaging=ema",
        "callbacks.averaging.decay=0.5", *overrides,
    )  # fmt: skip
    job = assemble(config)
    job.trainer.fit(job.module, job.data)
    weights = torch.cat([p.detach().flatten() for p in job.module.model.parameters()])
    random = torch.get_rng_state()
    return job, (weights, random)


def test_training_does_not_notice(tmp_path, monkeypatch):
    answerers = []
    made = in_training.ModelAnswerer

    def noted(model, *args, **kwargs):
        answerers.append(made(model, *args, **kwargs))
        assert model.training  # it is put into evaluation mode afterwards
        return answerers[-1]

    monkeypatch.setattr(in_training, "ModelAnswerer", noted)
    _, (plain, plain_random) = run(tmp_path / "plain")
    job, (weights, random) = run(tmp_path / "evaluated", *EVALUATED)
    assert torch.equal(plain, weights)
    assert torch.equal(plain_random, random)
    assert len(answerers) == 2  # after step 2, and at the end
    assert all(answerer.processor is job.data.processor for answerer in answerers)
    assert job.module.model.training
    written = (tmp_path / "evaluated/metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    logged = {
        (line["step"], key): value
        for line in lines
        for key, value in line.items()
        if "eval/" in key
    }
    assert {step for step, _ in logged} == {2, 3}
    assert all(0 <= value <= 1 for value in logged.values())
    assert (2, "eval/quickstart_count_new_concepts/exact_match") in logged
    assert len(results_in(tmp_path / "evaluated/evaluations/in_training/step-2")) == 2


def test_the_averages_answer(tmp_path):
    seen = []

    class Looks(EvaluateInTraining):
        def answerer(self, trainer, model, step):
            answerer = super().answerer(trainer, model, step)
            ask = answerer.answer

            def answer(*args):
                (average,) = (c for c in trainer.callbacks if hasattr(c, "averages"))
                parameters = dict(model.named_parameters())
                seen.append(
                    all(torch.equal(parameters[n], a) for n, a in average.averages.items())
                    and not model.training
                )
                return ask(*args)

            answerer.answer = answer
            return answerer

    config = compose_config(
        *SHORT, *SAMPLES, f"run_dir={tmp_path}", *EVALUATED, "averaging=ema", "trainer.max_steps=2"
    )
    benchmarks = dict(list(build(config.callbacks.evaluation.benchmarks).items())[:1])
    del config.callbacks.evaluation
    job = assemble(config)
    job.trainer.callbacks.append(Looks(benchmarks, tmp_path / "e", every_n_steps=2, limit=1))
    job.trainer.fit(job.module, job.data)
    assert seen == [True]


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(ConfigError, match="every_n_steps is 0"):
        EvaluateInTraining({"a": None}, "here", every_n_steps=0)  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="benchmarks is empty"):
        EvaluateInTraining({}, "here")
    callback = EvaluateInTraining({"a": None}, "here")  # type: ignore[dict-item]
    divided = SimpleNamespace(strategy=object.__new__(MeshStrategy), global_step=0)
    with pytest.raises(ConfigError, match="divides it over ranks: take parallel=single"):
        callback.on_fit_start(divided, None)  # type: ignore[arg-type]
    other = SimpleNamespace(strategy=None, global_step=0)
    with pytest.raises(ConfigError, match="answers in words; this one is a Linear"):
        callback.on_fit_start(other, SimpleNamespace(model=nn.Linear(1, 1)))  # type: ignore[arg-type]
