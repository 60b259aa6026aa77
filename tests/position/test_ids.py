import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.position.ids import mrope_position_ids
from vlmkit.sequence import TextSpan, VisionSpan


def words(count: int) -> TextSpan:
    return TextSpan(token_ids=tuple(range(count)))


def run(rows: int, columns: int, times: tuple[int, ...] = (0,)) -> VisionSpan:
    return VisionSpan(placeholder_id=7, rows=rows, columns=columns, time_offsets=times)


def test_image_inside_text_worked_example():
    ids = mrope_position_ids([words(4), run(2, 3), words(3)])
    assert ids.tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8, 9],
        [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9],
    ]


def test_video_frames_as_runs_worked_example():
    frame = [words(4), run(2, 2), words(1)]
    ids = mrope_position_ids([words(2), *frame, *frame, words(1)])
    assert ids[0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        6,
        6,
        6,
        8,
        9,
        10,
        11,
        12,
        13,
        13,
        13,
        13,
        15,
        16,
    ]
    assert ids[1].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        6,
        7,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        13,
        14,
        14,
        15,
        16,
    ]
    assert ids[2].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        13,
        14,
        15,
        16,
    ]


def test_t_rope_run_is_followed_by_its_largest_id():
    ids = mrope_position_ids([words(3), run(2, 2, (0, 4, 8)), words(1)])
    assert ids[0].tolist() == [0, 1, 2, *[3] * 4, *[7] * 4, *[11] * 4, 12]
    assert ids[:, -1].tolist() == [12, 12, 12]


@given(
    st.lists(
        st.one_of(
            st.integers(1, 5).map(words),
            st.builds(run, st.integers(1, 4), st.integers(1, 4)),
        ),
        max_size=6,
    )
)
def test_each_span_starts_past_all_ids_before_it(spans):
    ids = mrope_position_ids(spans)
    assert ids.shape == (3, sum(span.num_tokens for span in spans))
    seen, start = -1, 0
    for span in spans:
        part = ids[:, start : start + span.num_tokens]
        assert int(part.min()) == seen + 1
        seen, start = int(part.max()), start + span.num_tokens
        if isinstance(span, TextSpan):
            assert torch.equal(part[0], part[1])
            assert torch.equal(part[0], part[2])
