import pytest

from vlmkit.sequence import VisionSpan
from vlmkit.temporal.base import Clip
from vlmkit.temporal.index import IndexTime
from vlmkit.temporal.t_rope import TRoPE
from vlmkit.temporal.text_timestamp import HMS, Seconds, TextTimestamp


def clip(*times_s: float) -> Clip:
    return Clip(times_s=times_s, rows=2, columns=2, placeholder_id=7)


def offsets(layout: list[str | VisionSpan]) -> list[tuple[int, ...]]:
    return [part.time_offsets for part in layout if isinstance(part, VisionSpan)]


@pytest.mark.parametrize(
    ("interval_s", "expected"),
    [(1.0, (0, 2, 4)), (0.5, (0, 1, 2)), (2.0, (0, 4, 8)), (0.25, (0, 0, 1))],
)
def test_t_rope_published_table(interval_s, expected):
    layout = TRoPE(tokens_per_second=2).layout(clip(*(i * interval_s for i in range(3))), key=0)
    assert offsets(layout) == [expected]


def test_t_rope_forgives_the_last_digit_of_a_clock():
    assert offsets(TRoPE(2).layout(clip(0.033, 1.0329999), key=0)) == [(0, 2)]


def test_single_run_encodings_write_one_pair_of_markers():
    for encoding in (IndexTime(), TRoPE()):
        layout = encoding.layout(clip(0.5, 1.5, 2.5), key=0)
        assert [part if isinstance(part, str) else part.num_tokens for part in layout] == [
            "<|vision_start|>",
            12,
            "<|vision_end|>",
        ]
    assert offsets(IndexTime().layout(clip(0.5, 9.5, 10), key=0)) == [(0, 1, 2)]


def test_text_timestamps_golden_layout():
    layout = TextTimestamp([Seconds()]).layout(clip(0.3, 1.5), key=0)
    written = "".join(part if isinstance(part, str) else "V" * part.num_tokens for part in layout)
    assert written == (
        "<0.3 seconds><|vision_start|>VVVV<|vision_end|>"
        "<1.5 seconds><|vision_start|>VVVV<|vision_end|>"
    )
    assert offsets(layout) == [(0,), (0,)]


@pytest.mark.parametrize(
    ("time_s", "seconds", "hms"),
    [
        (0.25, "<0.2 seconds>", "<00:00:00.2>"),
        (59.97, "<60.0 seconds>", "<00:01:00.0>"),
        (83.4, "<83.4 seconds>", "<00:01:23.4>"),
        (3661.0, "<3661.0 seconds>", "<01:01:01.0>"),
    ],
)
def test_formats(time_s, seconds, hms):
    assert Seconds()(time_s) == seconds
    assert HMS()(time_s) == hms


def test_mixed_format_is_drawn_per_sample_and_by_seed():
    def formats(seed: int) -> list[bool]:
        mixed = TextTimestamp([Seconds(), HMS()], seed)
        return ["seconds" in str(mixed.layout(clip(1.0, 2.0), key)[0]) for key in range(40)]

    assert formats(0) == formats(0)
    assert formats(0) != formats(1)
    assert 8 < sum(formats(0)) < 32
    layout = TextTimestamp([Seconds(), HMS()], 0).layout(clip(1.0, 2.0), 3)
    assert (
        len({"seconds" in part for part in layout if isinstance(part, str) and "<0" in part}) <= 1
    )


def test_bad_settings():
    with pytest.raises(ValueError, match="at least one"):
        TextTimestamp([])
    with pytest.raises(ValueError, match="positive"):
        TRoPE(0)
