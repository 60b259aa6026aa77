"""The times that a sequence tells are those of the frames that it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import floor

from vlmkit.data.processor import Example, Processor
from vlmkit.data.record import VideoPart
from vlmkit.data.video import PlannedVideo
from vlmkit.sequence import TextSpan, VisionSpan
from vlmkit.training.self_checks.base import CheckContext, CheckResult, Status

SECONDS = r"<(\d+\.?\d*) seconds>"
HMS = r"<(\d+):(\d+):(\d+\.?\d*)>"


class SourceTimes:
    """Timestamps of videos against the presentation times of their frames, read from the file's reader.

    Text is decoded from the tokens before each visual run and may be off by half of its last digit.
    Without text, time ids must follow `tokens_per_second`. Times must not run backwards.

    Args:
        patterns: of a timestamp at the end of text; groups are hours, minutes and seconds, the last ones
            if there are fewer.
    """

    meaning = (
        "timestamps do not tell when the frames are shown: they count sampled frames, come from the "
        "header's frame rate, or forget where the stretch begins"
    )

    def __init__(self, patterns: Sequence[str] = (SECONDS, HMS)) -> None:
        self.patterns = tuple(
            re.compile(pattern + r"(?:<\|vision_start\|>)?\Z") for pattern in patterns
        )

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        worst, allowed, count = 0.0, 0.0, 0
        problems: list[str] = []
        untimed = False
        for example in context.examples:
            for video, start_s, runs in videos_of(example):
                expected = presentation_times(video, start_s)
                if len(runs) == 1 and len(expected) > 1:
                    rate = getattr(context.processor.temporal, "tokens_per_second", None)
                    if rate is None:
                        untimed = True
                        continue
                    written = [offset / rate for offset in runs[0][1].time_offsets]
                    # floor() of a time that was rounded to 1e-4 of an id first
                    steps = [(t - expected[0]) * rate for t in expected]
                    expected = [floor(round(step, 4)) / rate for step in steps]
                    rounding = [1e-9] * len(expected)
                else:
                    stamps = [self._stamp(text, context.processor) for text, _ in runs]
                    if any(stamp is None for stamp in stamps):
                        problems.append(
                            f"{video.name}: no timestamp stands before a group of frames; a format of "
                            "your own needs its pattern in SourceTimes.patterns"
                        )
                        continue
                    written = [stamp[0] for stamp in stamps if stamp is not None]
                    rounding = [stamp[1] for stamp in stamps if stamp is not None]
                count += len(expected)
                if len(written) != len(expected):
                    problems.append(
                        f"{video.name}: {len(written)} times for {len(expected)} groups of frames"
                    )
                    continue
                errors = [abs(w - e) for w, e in zip(written, expected, strict=True)]
                first = max(range(len(errors)), key=lambda i: errors[i] - rounding[i])
                if errors[first] - rounding[first] >= worst - allowed or not allowed:
                    worst, allowed = errors[first], rounding[first]
                if errors[first] > rounding[first]:
                    problems.append(
                        f"{video.name}: group {first} is at {expected[first]:.3f} s, "
                        f"the sequence says {written[first]:.3f} s"
                    )
                if any(a > b for a, b in pairwise(written)):
                    problems.append(f"{video.name}: times run backwards")
        if not count and not problems:
            why = (
                f"{type(context.processor.temporal).__name__} carries no times"
                if untimed
                else "no video among the samples looked at"
            )
            return CheckResult(status=Status.SKIPPED, detail=why)
        return CheckResult(
            status=Status.FAILED if problems else Status.PASSED,
            measured=worst,
            tolerance=allowed,
            detail="; ".join(problems[:3]) or f"{count} times, in seconds",
        )

    def _stamp(self, text: Sequence[int], processor: Processor) -> tuple[float, float] | None:
        """The time at the end of a text, and half of its last digit."""
        decoded = processor.tokenizer.decode(list(text), skip_special_tokens=False)
        for pattern in self.patterns:
            if match := pattern.search(decoded):
                time_s = 0.0
                for part in match.groups():
                    time_s = 60 * time_s + float(part)
                decimals = len(match.groups()[-1].partition(".")[2])
                return time_s, 0.5 * 10**-decimals + 1e-6
        return None


def presentation_times(video: PlannedVideo, start_s: float) -> list[float]:
    """When each temporal patch is shown, in seconds since the start of the stretch; the file's clock."""
    shown = [float(video.reader.pts_s[index]) - start_s for index in video.frame_indices]
    size = video.transform.temporal_patch_size
    last = len(shown) - 1
    return [
        (shown[first] + shown[min(first + size - 1, last)]) / 2
        for first in range(0, len(shown), size)
    ]


def videos_of(
    example: Example,
) -> Iterator[tuple[PlannedVideo, float, list[tuple[tuple[int, ...], VisionSpan]]]]:
    """Each video of a sample, where its stretch begins, and its visual runs with the text before each."""
    if example.plan is None:
        return
    parts = [part for part in example.plan.conversation.parts if isinstance(part, VideoPart)]
    runs: list[tuple[tuple[int, ...], VisionSpan]] = []
    text: tuple[int, ...] = ()
    for span in example.spans:
        if isinstance(span, TextSpan):
            text += span.token_ids
        else:
            runs.append((text, span))
            text = ()
    at = part = 0
    for media in example.plan.media:
        groups, first = 0, at
        while groups < media.grid[0]:
            groups += len(runs[at][1].time_offsets)
            at += 1
        if isinstance(media, PlannedVideo):
            yield media, parts[part].start_s or 0.0, runs[first:at]
            part += 1
