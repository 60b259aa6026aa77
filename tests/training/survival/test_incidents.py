"""What went wrong is written, and can be read again."""

import json
import math

import pytest

from tests.samples import PAD_ID, image_example, text_example
from vlmkit.batch import Member, StepBatch
from vlmkit.checkpoint.folder import DiskFullError
from vlmkit.data.collate import collate
from vlmkit.training.survival.incidents import (
    Incident,
    IncidentError,
    IncidentLog,
    digests,
    read_incident,
)


def step_batch(number: int) -> StepBatch:
    micro = [
        collate([[example]], pad_id=PAD_ID, merge_size=2)
        for example in (text_example(0), image_example(number))
    ]
    return StepBatch(step=7, micro_batches=tuple(micro), tokens={}, samples={})


def incident(step: int = 7, **changes) -> Incident:
    return Incident(
        **{
            "step": step,
            "reason": "loss is nan",
            "loss": math.nan,
            "grad_norm": math.inf,
            "grad_norms": {"vision": math.inf, "language": 0.25},
            "rank": 1,
            "world_size": 2,
            "seed": 5,
            "data_state": {"step": 7, "waiting": [3, 1]},
            "samples": (Member(source="大图", key=12, origin="a.jsonl:3"),),
            "digests": tuple(digests(step_batch(1))),
            **changes,
        }
    )


def test_an_incident_reads_as_it_was_written(tmp_path):
    path = IncidentLog(tmp_path).record(incident(), lambda target: target.write_bytes(b"w"))
    assert path == tmp_path / "incidents" / "step-00000007-rank1.json"
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict JSON
    read = read_incident(path)
    assert math.isnan(read.loss)
    assert (path.parent / read.weights).read_bytes() == b"w"
    expected = incident(loss=0.0, weights="step-00000007-weights")
    assert incident(**{**vars(read), "loss": 0.0}) == expected


def test_digests_tell_whether_the_data_are_the_same():
    first, again, other = (digests(step_batch(number)) for number in (1, 1, 2))
    assert first == again
    assert first[0].patches is None
    assert first[1].patches != other[1].patches


def test_weights_and_files_are_kept_only_so_often(tmp_path):
    log = IncidentLog(tmp_path, keep_weights=1, keep=3)
    saved = []
    paths = [log.record(incident(step), saved.append) for step in range(2)]
    resumed = IncidentLog(tmp_path, keep_weights=1, keep=3)
    resumed.load_state_dict(json.loads(json.dumps(log.state_dict())))
    paths += [resumed.record(incident(step), saved.append) for step in range(2, 5)]
    assert len(saved) == 1
    assert [path is not None for path in paths] == [True, True, True, False, False]
    assert [read_incident(path).weights is not None for path in paths[:3]] == [True, False, False]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), DiskFullError("No space left")]
)
def test_without_room_for_weights_the_rest_is_written(error, tmp_path, caplog):
    def full(target):
        raise error

    path = IncidentLog(tmp_path).record(incident(), full)
    assert read_incident(path).weights is None
    assert "No space left" in caplog.text


def test_a_full_disk_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "incidents").write_text("in the way")
    assert IncidentLog(tmp_path).record(incident()) is None
    assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ('{"version": 1, "step"', "cut short"),
        ("[]", "not an incident"),
        ('{"version": 9}', "of version 9"),
        ('{"version": 1}', "lacks data_state"),
    ],
)
def test_what_is_not_an_incident_is_refused(content, words, tmp_path):
    path = tmp_path / "step.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(IncidentError, match=words) as error:
        read_incident(path)
    assert str(path) in str(error.value)
