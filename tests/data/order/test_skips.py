"""Left-out samples are counted, written down, and too many of them end the run."""

from __future__ import annotations

import json
import pickle

import pytest

from vlmkit.data.order.samples import Skipped
from vlmkit.data.order.skips import SkipLog, TooManySkippedError
from vlmkit.errors import MediaError, Reason, RecordError


def skipped(index: int, code: Reason = Reason.UNREADABLE, source: str = "web") -> Skipped:
    return Skipped(
        index=index, source=source, origin=f"{source}:{index}", code=code, message=f"broken {index}"
    )


def test_each_is_written_and_counted(tmp_path):
    log = SkipLog(file=tmp_path / "new" / "skipped.jsonl")
    log.add({"web": 7}, [skipped(1), skipped(2, Reason.TIMEOUT)])
    log.add({"web": 8}, [])
    log.add({}, [skipped(3)])
    lines = [json.loads(line) for line in log.file.read_text().splitlines()]
    assert [line["index"] for line in lines] == [1, 2, 3]
    assert lines[1] == {
        "index": 2, "source": "web", "origin": "web:2", "code": "timeout", "message": "broken 2"
    }  # fmt: skip
    assert log.summary() == "web: 1 timeout, web: 2 unreadable"
    assert (log.seen["web"], log.skipped_of("web")) == (18, 3)

    again = SkipLog()
    again.load_state_dict(json.loads(json.dumps(log.state_dict())))
    assert (again.seen, again.counts) == (log.seen, log.counts)


def test_a_share_that_is_too_high_ends_the_run():
    log = SkipLog(max_share=0.1, min_seen=50)
    log.add({"web": 30}, [skipped(i) for i in range(10)])  # too few to judge
    with pytest.raises(
        TooManySkippedError, match=r"web: 11 of 60 samples had to be left out .*broken 9"
    ):
        log.add({"web": 19}, [skipped(9)])


def test_sources_are_judged_apart():
    log = SkipLog(max_share=0.1, min_seen=50)
    log.add({"web": 1000}, [skipped(1)])
    with pytest.raises(TooManySkippedError, match="clips: 10 of 50"):
        log.add({"clips": 40, "web": 100}, [skipped(i, source="clips") for i in range(10)])


def test_too_many_in_a_row_end_the_run():
    log = SkipLog(max_in_a_row=4)
    for _ in range(10):  # in a step that used others, their order does not matter
        log.add({"web": 1}, [skipped(i) for i in range(9)])
    log.add({}, [skipped(0), skipped(1), skipped(2)])
    again = SkipLog(max_in_a_row=4)
    again.load_state_dict(log.state_dict())
    again.add({"other": 8}, [skipped(3)])
    with pytest.raises(TooManySkippedError, match="web: 5 samples in a row"):
        again.add({"other": 8}, [skipped(4)])


def test_reasons_survive_the_way_from_a_worker():
    for error in (MediaError("gone", Reason.MISSING_FILE), RecordError("no")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.code) == (type(error), str(error), error.code)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_share is 3"):
        SkipLog(max_share=3)
