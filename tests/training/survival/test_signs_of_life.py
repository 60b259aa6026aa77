"""The rank that was lost is named, and the others leave in time."""

import os
import signal
import time

import pytest

from tests.training.survival.tiny_fit import Line, fit, over_gloo, two_ranks
from vlmkit.training.survival.signs_of_life import PEER_LOST, SignsOfLife

SIGNS = {"every_s": 0.2, "silent_after_s": 1.0}


def lose(how: str, victim: int) -> None:
    def work(index: int) -> None:
        if index != 3 or int(os.environ["LOCAL_RANK"]) != victim:
            return
        if how == "error":
            raise ValueError("this rank's own mistake")
        time.sleep(0.5)  # the other one waits, and so this step is the last one seen
        # stopped, it keeps its sockets: as a machine that has lost its network, or NCCL's silence
        os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)

    fit([SignsOfLife(**SIGNS)], Line(work), **over_gloo())


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "victim"), [("killed", 1), ("killed", 0), ("stopped", 1), ("error", 1)]
)
def test_the_rank_that_is_lost_is_named_by_the_other(how, victim, tmp_path):
    ranks = two_ranks(tmp_path, lose, how, victim)
    try:
        start = time.monotonic()
        left = ranks[1 - victim]
        code = left.exit_code(60)
        print(how, victim, time.monotonic() - start, left.output[-1500:])
        assert code not in (0, None), left.output
        if how == "error":
            assert "rank 1 failed first: ValueError: this rank's own mistake" in left.output
        elif victim == 1:
            assert f"rank 1 (process {ranks[1].pid} on " in left.output
            assert "last seen in step 3" in left.output
            assert "no sign of life" in left.output
        if how == "stopped":  # nothing but the silence tells
            assert code == PEER_LOST
    finally:
        for rank in ranks:
            rank.kill()


def silent_at_the_end() -> None:
    """A rank that is through is not missed while the other one still works."""
    rank = int(os.environ["LOCAL_RANK"])
    callback = SignsOfLife(**SIGNS)
    fit([callback], Line(), max_steps=3, **over_gloo())
    assert callback.who_is_silent() is None
    if rank == 0:
        time.sleep(3)


@pytest.mark.distributed
def test_a_rank_that_has_finished_is_not_missed(tmp_path):
    ranks = two_ranks(tmp_path, silent_at_the_end)
    assert [rank.exit_code(60) for rank in ranks] == [0, 0], [rank.output for rank in ranks]


def test_times_must_fit():
    with pytest.raises(ValueError, match="at least three times"):
        SignsOfLife(every_s=5, silent_after_s=10)
