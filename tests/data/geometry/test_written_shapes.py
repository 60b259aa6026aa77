"""Boxes and points in text: every way they are written, and what looks like one but is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.data.geometry.shapes import Box, Grounding, Relative1000, grounding_text
from vlmkit.data.geometry.written_shapes import BARE, shapes_in


def found(text: str) -> list[tuple[str, list[float]]]:
    return [(shape.form, list(shape.numbers)) for shape in shapes_in(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]', [("bbox_2d", [1, 2, 3, 4])]),
        ("```json\n[{'bbox_2d':[1,2,3.5,-4]}]\n```", [("bbox_2d", [1, 2, 3.5, -4])]),
        (
            '{"point_2d": [5, 6]} {"bbox": [1, 2, 3, 4]}',
            [("point_2d", [5, 6]), ("bbox", [1, 2, 3, 4])],
        ),
        ('"bbox_2d" : [\n 1,\n 2,\n 3,\n 4\n]', [("bbox_2d", [1, 2, 3, 4])]),
        (
            '"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]',
            [("bbox_2d", [1, 2, 3, 4]), (BARE, [5, 6, 7, 8])],
        ),
        ("<ref>a</ref><box>(1,2),(3,4)</box>", [("<box>", [1, 2, 3, 4])]),
        ("<|box_start|>(1, 2), (3, 4)<|box_end|>", [("<box>", [1, 2, 3, 4])]),
        ("<|box_start|>(1,2)<|box_end|>", [("<box>", [1, 2])]),
        (
            "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>",
            [("<box>", [1, 2, 3, 4]), ("<box>", [5, 6, 7, 8])],
        ),
        ('<p data-bbox="1 2 3 4">text</p>', [("data-bbox", [1, 2, 3, 4])]),
        ("<!-- Table (1, 2, 3, 4) -->", [("<!-- Image -->", [1, 2, 3, 4])]),
        ("the cup at [0.1, .2, 3e-1, 4.]", [(BARE, [0.1, 0.2, 0.3, 4])]),
        ('{"bbox_2d": [1, 2, 3]}', [("bbox_2d", [1, 2, 3])]),
        ('{"bbox_2d": [1, 2, 3, 4, 5]}', [("bbox_2d", [1, 2, 3, 4, 5])]),
    ],
)
def test_forms(text: str, expected: list[tuple[str, list[float]]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        'Answer with [{"bbox_2d": [x1, y1, x2, y2], "label": "…"}].',
        '"point_2d": [x, y]',
        "<box>(x1,y1),(x2,y2)</box>",
        '"bbox_2d": []',
        "the list [1, 2, 3] and the list [1, 2, 3, 4, 5]",
        "(1, 2), (3, 4)",
        '"bbox_3d": [1, 2, 3, 4, 5, 6, 7, 8, 9]',
    ],
)
def test_what_is_no_shape(text: str) -> None:
    assert found(text) == []


def test_written_for_people() -> None:
    (keyed,) = shapes_in('"bbox_2d": [1, 2.50, 3, 4]')
    (bare,) = shapes_in("[1, 2, 3, 4]")
    (long,) = shapes_in('"bbox": [1, 2, 3, 4, 5, 6, 7, 8, 9]')
    assert (str(keyed), str(bare)) == ("bbox_2d [1, 2.5, 3, 4]", "[1, 2, 3, 4]")
    assert str(long) == "bbox [1, 2, 3, 4, 5, 6, 7, 8, …]"
    assert (keyed.is_bare, bare.is_bare) == (False, True)
    assert (keyed.is_malformed, long.is_malformed) == (False, True)


@given(st.text(alphabet='[]{}<>()":, 12.e-+bbox_2dpoint|\n', max_size=200))
def test_any_text_is_read_without_failing(text: str) -> None:
    for shape in shapes_in(text):
        assert shape.numbers


@given(st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), max_size=5), st.text())
def test_what_is_written_is_found(numbers: list[list[int]], label: str) -> None:
    boxes = [
        Box(min(a, c), min(b, d), max(a, c), max(b, d), Relative1000()) for a, b, c, d in numbers
    ]
    label = label.replace('"', "").replace("<", "").replace("[", "")
    text = grounding_text([Grounding(box, label) for box in boxes])
    assert found(text) == [("bbox_2d", list(box.coordinates)) for box in boxes]
