"""Times in a sequence are those of the file; other clocks are found."""

from dataclasses import replace
from functools import lru_cache

import pytest

from tests.training.self_checks.contexts import CLIP, FILM, TALKS, context, run, say
from vlmkit.data.record import Conversation, VideoPart
from vlmkit.data.video import VideoTransform
from vlmkit.training.self_checks.base import Status
from vlmkit.training.self_checks.timestamps import SourceTimes


@lru_cache
def films():
    return tuple(
        Conversation(
            messages=(say("user", "Look: ", part, "What?"), say("assistant", "It.")), key=i
        )
        for i, part in enumerate(
            [FILM, VideoPart(CLIP), VideoPart(CLIP, 1.25), VideoPart(CLIP, None, 1.5)]
        )
    )


@pytest.mark.parametrize("temporal", ["text_seconds", "text_hms", "text_mixed", "t_rope"])
def test_every_encoding_that_tells_time_passes(temporal):
    result = run(SourceTimes(), context(f"temporal={temporal}", talks=films()))
    assert result.status is Status.PASSED, result.detail
    assert int(result.detail.split()[0]) >= 8


def test_what_cannot_be_checked_says_why():
    assert "no video" in run(SourceTimes(), context(talks=TALKS[2:])).detail
    result = run(SourceTimes(), context("temporal=index", talks=films()))
    assert result.status is Status.SKIPPED
    assert "IndexTime carries no times" in result.detail


class SamplingClock(VideoTransform):
    """Counts kept frames at the nominal rate."""

    def plan(self, video, start_s=None, end_s=None, share=1.0):
        planned = super().plan(video, start_s, end_s, share)
        times = tuple(i * 2 / self.fps + 0.5 / self.fps for i in range(planned.grid[0]))
        return replace(planned, times_s=times)


class FileClock(VideoTransform):
    """Forgets where the stretch begins."""

    def plan(self, video, start_s=None, end_s=None, share=1.0):
        planned = super().plan(video, start_s, end_s, share)
        return replace(planned, times_s=tuple(t + (start_s or 0) for t in planned.times_s))


@pytest.mark.parametrize(
    ("temporal", "transform"),
    [("text_seconds", SamplingClock), ("t_rope", SamplingClock), ("text_hms", FileClock)],
)
def test_another_clock_is_found(temporal, transform):
    processor = context(f"temporal={temporal}", talks=TALKS[:1]).processor
    processor.video = transform(**{**vars(processor.video), "fps": 1.5, "max_frames": 8})
    result = run(SourceTimes(), context(talks=films(), processor=processor))
    assert not result.passed
    assert "the sequence says" in result.detail
    assert result.measured > result.tolerance


def test_a_sequence_without_its_timestamps_is_found():
    where = context(talks=films())
    processor = where.processor
    layout = processor.temporal.layout
    processor.temporal.layout = lambda clip, key: [
        p.rpartition(">")[2] + "<|vision_start|>" if isinstance(p, str) and "seconds" in p else p
        for p in layout(clip, key)
    ]
    result = run(SourceTimes(), context(talks=films(), processor=processor))
    assert not result.passed
    assert "no timestamp" in result.detail
