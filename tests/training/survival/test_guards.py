"""Which steps are applied, and how: from numbers that all ranks share."""

import json
import math
import random

import pytest
from hydra.utils import instantiate

from vlmkit.build import CONF_DIR
from vlmkit.errors import UserError
from vlmkit.training.survival.guards import (
    Guards,
    NonFiniteGuard,
    SpikeGuard,
    TooManyNonFiniteError,
)
from vlmkit.training.survival.spike_actions import (
    LogSpike,
    LowerRate,
    RollBack,
    SkipStep,
    TooManyRollBacksError,
)
from vlmkit.training.survival.verdict import Verdict


def losses(count: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [2.0 + 0.1 * draw.gauss(0, 1) for _ in range(count)]


def spike_guard(action, **options) -> SpikeGuard:
    return SpikeGuard(action, **{"window": 32, "warm_up": 16, **options})


def judged(guard, values, first: int = 0) -> list[Verdict]:
    return [guard.judge(first + i, value, 1.0) for i, value in enumerate(values)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_steps_that_are_not_finite_are_left_out(loss):
    guard = NonFiniteGuard(max_in_a_row=1)
    assert guard.judge(0, 1.0, 1.0) == Verdict()
    assert guard.judge(1, loss, 1.0) == Verdict(apply=False, reason=f"loss is {loss}")
    assert guard.judge(2, 1.0, 1.0) == Verdict()


def test_too_many_in_a_row_end_the_run():
    guard = NonFiniteGuard(max_in_a_row=2, max_share=1.0)
    judged(guard, [1.0, math.nan, 1.0, math.nan, math.nan])
    with pytest.raises(TooManyNonFiniteError, match="3 steps in a row, since step 3") as error:
        guard.judge(5, 1.0, math.inf)
    assert isinstance(error.value, UserError)
    assert "max_in_a_row allows (2)" in str(error.value)


def test_too_many_of_the_last_steps_end_the_run():
    guard = NonFiniteGuard(max_in_a_row=1, max_share=0.2, window=10)
    values = [math.nan, 1.0, 1.0, 1.0, math.nan, *[1.0] * 6]
    judged(guard, values)
    assert not guard.judge(11, math.nan, 1.0).apply  # that of step 0 has left the window
    guard.judge(12, 1.0, 1.0)
    with pytest.raises(TooManyNonFiniteError, match="3 of the last 10 steps, since step 4"):
        guard.judge(13, math.nan, 1.0)


def test_a_spike_is_seen_once_warm_and_not_again_after_it():
    guard = spike_guard(LogSpike())
    early, *calm = judged(guard, [50.0, *losses(40)])
    assert early == Verdict()
    assert all(verdict == Verdict() for verdict in calm)
    spike, *after = judged(guard, [50.0, *losses(10, seed=1)], first=41)
    assert spike.apply
    assert "loss 50 is" in spike.reason
    assert all(verdict == Verdict() for verdict in after)


def test_only_what_is_finite_enters_the_window():
    guard = spike_guard(SkipStep())
    judged(guard, losses(32))
    before = guard.state_dict()
    assert guard.judge(32, math.nan, 1.0) == Verdict()
    assert guard.judge(33, 2.0, math.inf) == Verdict()
    assert guard.state_dict() == before
    assert not guard.judge(34, 9.0, 1.0).apply


def test_a_level_that_lasts_is_no_spike_after_half_a_window():
    guard = spike_guard(SkipStep())
    judged(guard, losses(32))
    applied = [verdict.apply for verdict in judged(guard, [8 + x for x in losses(20, 1)], first=32)]
    assert not any(applied[:15])
    assert all(applied[17:])


def test_falling_and_constant_losses_are_no_spikes():
    guard = spike_guard(SkipStep())
    values = [1.0] * 40 + [0.5] * 40 + [10 * 0.9**i for i in range(4)]
    assert [v.apply for v in judged(guard, values)].count(False) == 4  # those of the last part
    assert all(v.apply for v in judged(spike_guard(SkipStep()), [10 * 0.99**i for i in range(200)]))


def test_the_gradient_norm_is_watched_if_asked():
    guard = spike_guard(SkipStep(), loss_threshold=None, grad_norm_threshold=10.0)
    for step in range(20):
        assert guard.judge(step, 99.0 * step, 1.0 + 0.01 * (step % 3)).apply
    assert "grad_norm 5" in guard.judge(20, 0.0, 5.0).reason


def test_the_rate_is_lower_for_a_while():
    guard = spike_guard(LowerRate(factor=0.1, num_steps=3))
    judged(guard, losses(32))
    verdicts = judged(guard, [9.0, math.nan, *losses(3, 1)], first=32)
    assert [verdict.rate for verdict in verdicts] == [0.1, 0.1, 0.1, 1.0, 1.0]
    assert all(verdict.apply for verdict in verdicts)


def test_going_back_has_a_limit():
    guard = spike_guard(RollBack(back=2, most=2, within=100))
    judged(guard, losses(32))
    for step in (32, 40):
        verdict = guard.judge(step, 9.0, 1.0)
        assert (verdict.apply, verdict.roll_back) == (False, 2)
    with pytest.raises(TooManyRollBacksError, match="at steps 32, 40"):
        guard.judge(50, 9.0, 1.0)


def guards() -> Guards:
    return Guards(
        {
            "non_finite": NonFiniteGuard(max_in_a_row=3),
            "spike": spike_guard(LowerRate(factor=0.5, num_steps=9)),
            "gradient": spike_guard(SkipStep(), loss_threshold=None, grad_norm_threshold=6.0),
            "off": None,
        }
    )


def test_ranks_and_resumed_runs_decide_alike():
    draw = random.Random(0)
    numbers = [(x, 1 + 0.1 * draw.random()) for x in losses(120)]
    numbers[50], numbers[53], numbers[70] = (math.nan, 1.0), (30.0, 1.05), (2.0, 40.0)
    numbers[100] = (30.0, 40.0)
    one, other = guards(), guards()
    whole = [one.judge(i, *pair) for i, pair in enumerate(numbers)]
    assert [other.judge(i, *pair) for i, pair in enumerate(numbers)] == whole
    assert {i for i, v in enumerate(whole) if v.reason} == {50, 53, 70, 100}
    assert {i for i, v in enumerate(whole) if not v.apply} == {50, 70, 100}
    assert "; " in whole[100].reason
    for stop in (20, 51, 57, 71):  # each in the middle of something
        first = guards()
        for i in range(stop):
            first.judge(i, *numbers[i])
        resumed = guards()
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        rest = [resumed.judge(i, *numbers[i]) for i in range(stop, 120)]
        assert rest == whole[stop:]


def test_a_resumed_run_may_have_other_guards(caplog):
    state = guards().state_dict()
    fresh = Guards({"non_finite": NonFiniteGuard(), "mine": spike_guard(LogSpike())})
    fresh.load_state_dict(state)
    assert "mine" in caplog.text


@pytest.mark.parametrize("name", ["log", "skip", "lower_rate", "roll_back"])
def test_config_files(name):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose(f"guard/{name}")
    built = Guards(instantiate(config.guard))
    assert built.judge(0, math.nan, 1.0).apply is False
    assert type(built.guards["spike"].action).__name__.lower().startswith(name.split("_")[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: NonFiniteGuard(max_share=2.0),
        lambda: SpikeGuard(LogSpike(), loss_threshold=None),
        lambda: SpikeGuard(LogSpike(), window=2),
        lambda: LowerRate(factor=0.0),
        lambda: RollBack(back=0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match=" is "):
        make()
