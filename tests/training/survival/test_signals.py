"""A run that is asked to stop saves and leaves, so that it can be taken up again."""

import os
import re
import signal
import time

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from tests.training.survival.tiny_fit import Apart, Line, fit, over_gloo, two_ranks
from vlmkit.child_signals import prepare_worker
from vlmkit.training.survival.signals import RESUMABLE, StopSignals


class Saves(Callback):
    def save_now(self, trainer: L.Trainer) -> None:
        print(f"rank {trainer.global_rank} saves step {trainer.global_step}", flush=True)

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == 2:
            print("training", flush=True)


def stoppable_run(kind: str) -> None:
    def work(index: int) -> None:
        time.sleep((1000 if kind == "second" else 0.05) if index > 2 else 0)

    options = over_gloo() if kind == "ranks" else {}
    if kind == "workers":
        options = {"num_workers": 2, "worker_init_fn": prepare_worker}
    fit([StopSignals(patience_s=0.3), Saves()], Line(work), **options)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_whole_job_saves_and_stops(name, tmp_path):
    process = Apart(tmp_path / "log", stoppable_run, "workers")
    process.wait_for("training")
    os.killpg(process.pid, signal.Signals[name])  # loader workers too, as schedulers do
    assert process.exit_code() == RESUMABLE, process.output
    saved, stopped = re.findall(r" step (\d+)", process.output)
    assert saved == stopped


def test_a_second_signal_ends_at_once(tmp_path):
    process = Apart(tmp_path / "log", stoppable_run, "second")
    process.wait_for("training")
    time.sleep(0.3)  # it is in the middle of a step that does not end
    os.kill(process.pid, signal.SIGTERM)
    process.wait_for("will save")
    os.kill(process.pid, signal.SIGTERM)  # of the same request
    assert process.exit_code(0.6) is None
    os.kill(process.pid, signal.SIGTERM)
    assert process.exit_code() == -signal.SIGTERM
    assert "saves" not in process.output


@pytest.mark.distributed
def test_one_rank_that_is_asked_stops_all_at_the_same_step(tmp_path):
    ranks = two_ranks(tmp_path, stoppable_run, "ranks")
    for rank in ranks:
        rank.wait_for("training")
    os.kill(ranks[1].pid, signal.SIGTERM)
    # rank 1 leaves the code to the rank whose launcher would kill everything over it
    assert [rank.exit_code() for rank in ranks] == [RESUMABLE, 0]
    saved = [re.findall(r"rank (\d) saves step (\d+)", rank.output) for rank in ranks]
    assert [number for ((number, _),) in saved] == ["0", "1"]
    assert len({step for ((_, step),) in saved}) == 1


def test_handlers_are_given_back_and_a_save_of_ones_own_is_called():
    saved = []

    def work(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)]
    stop = StopSignals(save=lambda trainer: saved.append(trainer.global_step))
    with pytest.raises(SystemExit) as ended:
        fit([stop], Line(work))
    assert ended.value.code == RESUMABLE
    assert saved == [4]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_unknown_signals_are_refused():
    with pytest.raises(ValueError, match="SIGFOO"):
        StopSignals(signals=["SIGFOO"])
