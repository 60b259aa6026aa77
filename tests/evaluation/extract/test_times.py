from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.evaluation.extract.times import time_span


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("24.3 - 30.4 seconds", (24.3, 30.4)),
        ("The event happens in 24.3 - 30.4 seconds.", (24.3, 30.4)),
        ("From 00:24 to 00:30.5", (24, 30.5)),
        ("1:01:12 – 1:02:00", (3672, 3720)),
        ('{"start": "00:05.50", "end": "01:07.25"}', (5.5, 67.25)),
        ('[{"start_time": 3, "end_time": 4.5, "label": "x"}]', (3, 4.5)),
        ("start: 3s, end: 5s", (3, 5)),
        ("[3.5, 7]", (3.5, 7)),
        ("between 5 and 7 seconds", (5, 7)),
        ("2-3 people dance from 5s to 7s", (5, 7)),
        ("5 到 7 秒", (5, 7)),
        ("٥ - ٧ seconds", (5, 7)),
        ("3 to 3 s", (3, 3)),
        ("7 to 5 seconds", None),
        ("1-2 or 3-4", None),
        ("at 5 seconds", None),
        ("never", None),
        ("", None),
        ("nan to inf", None),
        ("-5 - -3", None),
        ("9" * 500 + " - " + "9" * 500, None),
        ('{"start": null, "end": 5}', None),
    ],
)
def test_spans(text, span):
    found = time_span(text)
    assert (found and (found.start_s, found.end_s)) == (span and pytest.approx(span))


@given(st.text(max_size=200))
def test_no_text_crashes(text):
    time_span(text)
    time_span('{"start":' + text + '"end":' + text)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ["1", "1:", "1 - ", '"start": 1 ', "11:11 to ", " "])
def test_huge_texts_are_read_in_linear_time(piece):
    time_span(piece * 100_000)
