from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.data.geometry.spaces import Relative1000
from vlmkit.evaluation.extract.shapes import boxes, count_shapes, first_box, first_point, points

SPACE = Relative1000()
BOX, OTHER = [10, 20, 30, 40], [500, 500, 600, 600]


def one(box, **fields) -> dict:
    return {"bbox_2d": box, **fields}


@pytest.mark.parametrize(
    ("text", "first", "how_many"),
    [
        (json.dumps([one(BOX, label="a"), one(OTHER)]), BOX, 2),
        (f"```json\n{json.dumps([one(BOX)], indent=1)}\n```", BOX, 1),
        (f"Here it is: {json.dumps(one(BOX))} as you asked", BOX, 1),
        (json.dumps({"objects": {"found": [one(BOX)]}}), BOX, 1),
        (json.dumps([one(BOX, parts=[one(OTHER)])]), BOX, 2),
        (json.dumps([one(BOX), one(OTHER)])[:-20], BOX, 1),  # cut off
        (json.dumps([one(BOX[:3]), one(OTHER)]), None, 1),  # the first decides
        (json.dumps([one([30, 40, 10, 20]), one(OTHER)]), None, 1),
        (json.dumps([one(BOX), one(BOX)]), BOX, 2),
        ('[{"bbox_2d": [NaN, 1, 2, 3]}]', None, 0),
        ('[{"bbox_2d": [1, 1, Infinity, 3]}]', None, 0),
        ('[{"bbox_2d": [1, 1, 1' + "0" * 400 + ", 3]}]", None, 0),
        ('[{"bbox_2d": [true, 1, 2, 3]}]', None, 0),
        ('[{"bbox_2d": "10,20,30,40"}]', None, 0),
        ('[{"bbox_2d": {"x": 1}}]', None, 0),
        ("[]", None, 0),
        ("```json\n[]\n```", None, 0),
        ("[10, 20, 30, 40]", None, None),
        ("The box is at 10, 20, 30, 40", None, None),
        ("", None, None),
        ('"bbox_2d"', None, None),
        ("[" * 100_000 + '"bbox_2d"', None, None),
        ('{"bbox_2d":' * 20_000, None, None),
    ],
)
def test_boxes(text, first, how_many):
    box = first_box(text, SPACE)
    assert (list(box.coordinates) if box else None) == first
    found = boxes(text, SPACE)
    assert (None if found is None else len(found)) == how_many


def test_labels_and_scores():
    text = json.dumps([one(BOX, label="a {b}", score=0.25), one(OTHER, label=7, score=9)])
    assert [(label, score) for _, label, score in boxes(text, SPACE)] == [("a {b}", 0.25), ("", 1)]


def test_points_and_counts():
    text = json.dumps([{"point_2d": [1, 2]}, {"point_2d": [1, 2]}, {"point_2d": [3]}])
    assert len(points(text, SPACE)) == 2
    assert first_point(text, SPACE).coordinates == (1, 2)
    assert count_shapes(text) == 1
    assert count_shapes(json.dumps([one(BOX), one(BOX), one(OTHER)])) == 2
    assert count_shapes("[]") == 0
    assert count_shapes("three") is None
    assert first_point('{"coordinate": [5, 6]}', SPACE, ("coordinate",)).x == 5


@given(
    st.recursive(st.none() | st.floats() | st.text(max_size=5), lambda c: st.lists(c, max_size=5))
)
def test_no_json_crashes(value):
    text = json.dumps([{"bbox_2d": value, "label": value, "score": value}])
    boxes(text, SPACE)
    assert (first_box(text, SPACE) is None) or len(value) == 4


@given(st.text(max_size=200))
def test_no_text_is_a_box(text):
    assert first_box(text, SPACE) is None
    points(text + '"point_2d"', SPACE)
    boxes(text + '"bbox_2d": [' + text, SPACE)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ["{", '{"bbox_2d":[1,2,3,4]},', "[{", '"bbox_2d"', "```json\n"])
def test_huge_texts_are_read_in_linear_time(piece):
    boxes('"bbox_2d"' + piece * 50_000, SPACE)
