"""Schedules: exact values, a state that is only the step, refusals."""

import logging

import pytest
import torch

from vlmkit.build import build, compose_config, options_of
from vlmkit.errors import ConfigError
from vlmkit.training.schedules import Constant, Cosine, StableDecay, WarmupSchedule


def optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": r} for r in lrs])


def rates(schedule: WarmupSchedule, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return values


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # first of the warm-up, last of it, first after, middle of the rest, last, one beyond the run
        (Constant(), [0.1, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (Cosine(0.1), [0.1, 1.0, 1.0, 0.55, 0.1002741, 0.1]),
        (StableDecay(0.5, 0.0, power=1.0), [0.1, 1.0, 1.0, 0.9, 0.02, 0.0]),
        (StableDecay(0.5, 0.2, power=0.5), [0.1, 1.0, 1.0, 1 - 0.8 * 0.1**0.5, 0.2080404, 0.2]),
    ],
)
def test_values(shape, expected):
    schedule = WarmupSchedule(optimizer(1.0), total_steps=100, shape=shape, warmup_steps=10)
    values = rates(schedule, 101)
    picked = [values[i] for i in (0, 9, 10, 55, 99, 100)]
    assert picked == pytest.approx(expected, abs=1e-7)


def test_a_warmup_below_one_is_a_share_of_the_run():
    by_share, by_steps = (
        WarmupSchedule(optimizer(3.0), total_steps=50, shape=Cosine(), warmup_steps=warmup)
        for warmup in (0.1, 5)
    )
    assert rates(by_share, 50) == rates(by_steps, 50)


def test_rates_of_groups_keep_their_ratio_and_resuming_goes_on():
    def make() -> WarmupSchedule:
        return WarmupSchedule(
            optimizer(1.0, 0.1), total_steps=20, shape=StableDecay(), warmup_steps=3
        )

    whole = make()
    expected = rates(whole, 20)
    first = make()
    rates(first, 7)
    second = make()
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, 13) == expected[7:]
    assert [g["lr"] for g in whole.optimizer.param_groups] == [0.0, 0.0]
    saved = first.state_dict()
    assert saved["last_epoch"] == 7
    assert saved["lr_lambdas"] == [None, None]  # nothing hidden in them


def test_a_warmup_longer_than_the_run_is_cut_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        schedule = WarmupSchedule(optimizer(1.0), total_steps=20, shape=Cosine(), warmup_steps=50)
    assert "warmup_steps 50 is not less than the run's 20 steps: warming up for 2" in caplog.text
    assert rates(schedule, 3) == pytest.approx([0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WarmupSchedule(optimizer(1.0), -1, Cosine()), "set trainer.max_steps"),
        (lambda: WarmupSchedule(optimizer(1.0), -1, Constant(), 0.1), "in whole steps"),
        (lambda: WarmupSchedule(optimizer(1.0), 9, Constant(), -1), "must not be negative"),
        (lambda: StableDecay(decay_share=1.5), r"decay_share must lie in 0\.\.1, got 1.5"),
        (lambda: StableDecay(power=0), "power must be positive"),
    ],
)
def test_bad_numbers_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_endless_run_can_have_a_constant_rate():
    schedule = WarmupSchedule(optimizer(2.0), total_steps=-1, shape=Constant(), warmup_steps=4)
    assert rates(schedule, 6) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", options_of("schedule"))
def test_every_option_builds(name):
    config = compose_config(f"schedule={name}")
    schedule = build(config.schedule)(optimizer(1.0), total_steps=100)
    assert rates(schedule, 51)[49:] == [1.0, 1.0]
