from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest

from vlmkit.evaluation.math_equality import MathEquality, Verdict
from vlmkit.evaluation.metrics.maths import MathAccuracy


@pytest.fixture(scope="module")
def metric():
    metric = MathAccuracy(MathEquality(limit_s=20))
    yield metric
    metric.equal.close()


@pytest.mark.parametrize(
    ("text", "truth", "score", "failed"),
    [
        (r"So \boxed{\frac{1}{2}}", "0.5", 1, False),
        (r"$\boxed{\sqrt{8}}$", r"2\sqrt{2}", 1, False),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1, False),
        ("The answer is 1,234.", "1234", 1, False),
        ("thinking ...\nthat makes 12", "12", 1, False),
        (r"\boxed{1} no, \boxed{2}", "1", 0, False),
        (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1, False),
        ("3e5", "300000", 1, False),
        ("The answer is 3e5", "3", 0, False),
        ("1/3", r"\frac{1}{3}", 1, False),
        ("４２", "42", 1, False),
        # never credited
        ("It is 1 or 2", "2", 0, True),
        ("The answer is 1 or 2", "2", 0, True),
        ("none of them", "2", 0, True),
        ("<think>2</think>", "2", 0, True),
        ("nan", "2", 0, True),
        (r"\boxed{" + "1+" * 2000 + "1}", "2", 0, True),
        (r"\boxed{" * 50, "2", 0, True),
        (r"\boxed{\{1, 2\}}", "2", 0, False),
    ],
)
def test_answers(metric, text, truth, score, failed):
    assert metric.scored(text, truth) == ([score], failed)


def test_an_unreadable_truth_is_the_mistake_of_the_set(metric):
    with pytest.raises(ValueError, match="reads no expression"):
        metric.update("2", "who knows", 1)


@pytest.mark.timeout(200)
def test_endless_work_is_cut_off_and_threads_may_ask(metric):
    found = []
    quick = MathEquality(limit_s=2)
    assert quick("$2$", "$2$") is Verdict.EQUAL
    thread = threading.Thread(
        target=lambda: found.append(quick("$9^{9^{9^{9}}}$", "$7^{7^{7^{7}}}$"))
    )
    begin = time.monotonic()
    thread.start()
    thread.join()
    assert time.monotonic() - begin < 30
    assert found == [Verdict.UNREADABLE]
    assert quick("$2$", "$2$") is Verdict.EQUAL  # it starts again
    quick.close()


def test_copies_share_the_process_and_pickles_have_none(metric):
    assert copy.deepcopy(metric).equal is metric.equal
    assert pickle.loads(pickle.dumps(metric.equal))._process is None
