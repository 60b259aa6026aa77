"""Boxes and points: conversions between spaces against exact fractions, text and back, refusals."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vlmkit.data.geometry.shapes import (
    Box,
    Box3D,
    Crop,
    Grounding,
    Picture,
    Point,
    Relative1,
    Relative1000,
    ResizedPixels,
    SourcePixels,
    Space,
    TimeSpan,
    View,
    clock,
    grounding_text,
    in_pixels,
    parse_groundings,
    seconds,
)
from vlmkit.data.record import GroundingPart
from vlmkit.errors import DataError, Reason

sides = st.integers(1, 10_000)
shares = st.floats(0, 1)
labels = st.text(max_size=12)


@st.composite
def grids(draw: st.DrawFn, on: View) -> Space:
    """Any kind of space over a view."""
    kind = draw(st.sampled_from([SourcePixels, ResizedPixels, Relative1000, Relative1]))
    if kind in (Relative1000, Relative1):
        return kind(on=on)
    return kind(draw(sides), draw(sides), on=on)


@st.composite
def boxes(draw: st.DrawFn, space: Space, least: float = 0.0) -> Box:
    """A box within its space; each side is at least a share `least` of the space's."""
    spans = []
    for extent in (space.width, space.height):
        start = draw(st.floats(0, 1 - least))
        spans.append(
            (start * extent, (start + least + draw(shares) * (1 - least - start)) * extent)
        )
    (x1, x2), (y1, y2) = spans
    return Box(x1, y1, max(x1, x2), max(y1, y2), space)


@st.composite
def views(draw: st.DrawFn, most: int = 2) -> View:
    """A picture, a crop of it, or a crop of a crop; each keeps at least 5 % of each side."""
    view: View = Picture()
    for _ in range(draw(st.integers(0, most))):
        view = Crop(draw(boxes(draw(grids(view)), least=0.05)))
    return view


spaces = views().flatmap(grids)


def root_coordinates(x: Fraction, y: Fraction, view: View) -> tuple[Fraction, Fraction]:
    """Where a point of a view's unit square lies in the root picture, without any rounding."""
    while isinstance(view, Crop):
        left, top, right, bottom = map(Fraction, view.box.coordinates)
        grid = view.box.space
        x = (left + x * (right - left)) / Fraction(grid.width)
        y = (top + y * (bottom - top)) / Fraction(grid.height)
        view = grid.on
    return x, y


def error(found: Box, expected: Box) -> float:
    """Worst difference of two boxes of one space, as a share of the space's sides."""
    assert found.space == expected.space
    extents = (found.space.width, found.space.height) * 2
    pairs = zip(found.coordinates, expected.coordinates, extents, strict=True)
    return max(abs(a - b) / extent for a, b, extent in pairs)


@given(st.data(), spaces, spaces)
def test_a_box_comes_back_from_any_space(data: st.DataObject, first: Space, second: Space) -> None:
    box = data.draw(boxes(first))
    assert error(box.to(second).to(first), box) < 1e-12  # measured 1.5e-13, crops of 5 % twice
    assert box.to(first) == box


@given(st.data(), spaces, spaces, spaces)
def test_a_detour_changes_nothing(data: st.DataObject, a: Space, b: Space, c: Space) -> None:
    box = data.draw(boxes(a))
    far = max(map(abs, box.to(Relative1(on=c.on)).coordinates))  # crops see boxes far outside
    assert error(box.to(b).to(c), box.to(c)) < 1e-12 * max(1, far)  # measured 7e-14


@given(st.data(), views(most=3))
def test_crops_of_crops_agree_with_exact_arithmetic(data: st.DataObject, view: View) -> None:
    space = data.draw(grids(view))
    box = data.draw(boxes(space))
    found = box.to(Relative1())
    for corner in (0, 2):
        x, y = map(Fraction, box.coordinates[corner : corner + 2])
        exact = root_coordinates(x / Fraction(space.width), y / Fraction(space.height), view)
        for ours, theirs in zip(found.coordinates[corner : corner + 2], exact, strict=True):
            assert abs(Fraction(ours) - theirs) < 1e-15  # measured 2.8e-16


def test_a_crop_of_a_crop_by_hand() -> None:
    picture = SourcePixels(2000, 1000)
    first = Crop(Box(1000, 0, 2000, 500, picture))  # right upper quarter
    second = Crop(Box(500, 500, 1000, 1000, Relative1000(on=first)))  # its right lower quarter
    assert second.root == Picture()
    assert Point(0, 0, Relative1000(on=second)).to(picture).coordinates == (1500, 250)
    assert Point(32, 16, ResizedPixels(64, 32, on=second)).to(picture).coordinates == (1750, 375)
    box = Box(0, 0, 1000, 1000, Relative1000(on=second))
    assert box.to(Relative1000()).coordinates == (750, 250, 1000, 500)
    assert box.to(Relative1000(on=first)).coordinates == (500, 500, 1000, 1000)


@given(st.data(), sides, sides, sides, sides)
def test_shares_of_area_and_iou_do_not_depend_on_the_raster(
    data: st.DataObject, width: int, height: int, new_width: int, new_height: int
) -> None:
    source, resized = SourcePixels(width, height), ResizedPixels(new_width, new_height)
    a, b = data.draw(boxes(source, least=0.01)), data.draw(boxes(source, least=0.01))
    assert a.area / (width * height) == pytest.approx(
        a.to(resized).area / (new_width * new_height), rel=1e-12
    )  # measured 4e-14
    expected = a.iou(b)
    assert a.to(resized).iou(b.to(resized)) == pytest.approx(expected, abs=1e-12)  # measured 8e-15
    assert a.to(resized).iou(b) == pytest.approx(expected, abs=1e-12)
    assert 0 <= expected <= 1 + 1e-12
    assert a.iou(a) == 1


def test_iou_of_what_does_not_touch_is_zero() -> None:
    space = Relative1000()
    box = Box(0, 0, 10, 10, space)
    assert box.iou(Box(20, 20, 30, 30, space)) == 0
    assert Box(5, 5, 5, 5, space).iou(Box(5, 5, 5, 5, space)) == 0
    assert box.iou(Box(5, 0, 15, 10, space)) == pytest.approx(1 / 3)


@given(st.data(), sides, sides)
def test_text_is_off_by_half_a_step_at_most(data: st.DataObject, width: int, height: int) -> None:
    box = data.draw(boxes(SourcePixels(width, height)))
    (read,) = parse_groundings(grounding_text([Grounding(box, "a")]))
    assert isinstance(read.shape, Box)
    assert error(read.shape, box.to(Relative1000())) * 1000 <= 0.5 + 1e-9  # measured 0.5
    assert all(isinstance(n, int) and 0 <= n <= 1000 for n in read.shape.coordinates)
    in_source = read.shape.to(box.space)
    assert abs(in_source.x1 - box.x1) <= width / 2000 + 1e-9
    assert abs(in_source.y2 - box.y2) <= height / 2000 + 1e-9


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), sides)
def test_text_keeps_the_order(xs: list[float], width: int) -> None:
    space = SourcePixels(width, 7)
    items = [Grounding(Point(x * width, 0, space)) for x in sorted(xs)]
    read = [entry["point_2d"][0] for entry in json.loads(grounding_text(items))]
    assert read == sorted(read)


grid_steps = st.integers(0, 1000)
angles = st.floats(-math.pi, math.pi).map(lambda n: round(n, 2))
lengths = st.floats(0, 100).map(lambda n: round(n, 2))


@st.composite
def groundings(draw: st.DrawFn) -> Grounding:
    """What text holds without loss."""
    label = draw(labels)
    match draw(st.sampled_from(["box", "point", "solid", "span"])):
        case "box":
            x1, x2 = sorted((draw(grid_steps), draw(grid_steps)))
            y1, y2 = sorted((draw(grid_steps), draw(grid_steps)))
            return Grounding(Box(x1, y1, x2, y2, Relative1000()), label)
        case "point":
            return Grounding(Point(draw(grid_steps), draw(grid_steps), Relative1000()), label)
        case "solid":
            center = (draw(angles), draw(angles), draw(lengths))
            size = (draw(lengths), draw(lengths), draw(lengths))
            return Grounding(Box3D(center, size, draw(angles), draw(angles), draw(angles)), label)
        case _:
            start, end = sorted((draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))))
            return Grounding(TimeSpan(start / 100, end / 100), label)


@given(st.lists(groundings(), max_size=5))
def test_text_and_back(items: list[Grounding]) -> None:
    text = grounding_text(items)
    assert parse_groundings(text) == items
    assert parse_groundings(f"Here they are:\n```json\n{text}\n```\nDone.") == items
    assert parse_groundings(grounding_text(items, time=seconds)) == items


@given(st.data(), views(), sides, sides)
def test_text_of_resized_pixels_and_of_crops(
    data: st.DataObject, view: View, width: int, height: int
) -> None:
    space = ResizedPixels(width, height, on=view)
    item = Grounding(data.draw(boxes(data.draw(grids(view)))), "x")
    text = grounding_text([item], space)
    (read,) = parse_groundings(text, space)
    assert grounding_text([read], space) == text
    (relative,) = parse_groundings(grounding_text([item]), Relative1000(on=view))
    assert isinstance(relative.shape, Box)
    assert isinstance(item.shape, Box)
    assert error(relative.shape, item.shape.to(relative.shape.space)) <= 0.5e-3 + 1e-9


def test_the_published_text() -> None:
    space = SourcePixels(1920, 1080)
    items = (
        Grounding(Box(480, 270, 1920, 1080, space), "杯子 “red”"),
        Grounding(Point(960, 540, space), "tip"),
        Grounding(Box3D((-0.854, 0.3, 2.125), (0.5, 0.8, 0.7), -2.75, 0.1, -0.0001), "table"),
        Grounding(TimeSpan(4.2, 75.456), "jump"),
        Grounding(TimeSpan(3599.999, 3600)),
    )
    assert grounding_text(items) == (
        '[{"bbox_2d": [250, 250, 1000, 1000], "label": "杯子 “red”"}, '
        '{"point_2d": [500, 500], "label": "tip"}, '
        '{"bbox_3d": [-0.85, 0.3, 2.12, 0.5, 0.8, 0.7, -2.75, 0.1, 0.0], "label": "table"}, '
        '{"start": "00:04.20", "end": "01:15.46", "label": "jump"}, '
        '{"start": "60:00.00", "end": "60:00.00"}]'
    )
    assert GroundingPart(items[:2]).text == grounding_text(items[:2])
    assert (
        grounding_text(items[3:4], time=seconds)
        == '[{"start": 4.2, "end": 75.46, "label": "jump"}]'
    )
    assert grounding_text([]) == "[]"


def test_what_text_counts_in() -> None:
    """A box in a crop reads relative to the crop, unless the text is said to be about the picture."""
    crop = Crop(Box(500, 0, 1000, 500, Relative1000()))
    item = Grounding(Box(200, 200, 400, 400, Relative1000(on=crop)))
    assert grounding_text([item]) == '[{"bbox_2d": [200, 200, 400, 400]}]'
    assert grounding_text([item], Relative1000()) == '[{"bbox_2d": [600, 100, 700, 200]}]'
    assert grounding_text([item], ResizedPixels(640, 320)) == '[{"bbox_2d": [384, 32, 448, 64]}]'
    with pytest.raises(DataError, match="one text cannot hold shapes on"):
        grounding_text([item, Grounding(Point(1, 1, Relative1000()))])


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_numbers_of_numpy(dtype: type) -> None:
    x1, y1, x2, y2 = np.array([1, 2, 30, 40], dtype)
    item = Grounding(Box(x1, y1, x2, y2, Relative1000()))
    assert grounding_text([item]) == '[{"bbox_2d": [1, 2, 30, 40]}]'


def test_drawing_happens_in_pixels_of_the_own_view() -> None:
    box = Box(250, 0, 1000, 500, Relative1000())
    assert in_pixels(box, 64, 32) == Box(16, 0, 64, 16, ResizedPixels(64, 32))
    crop = Crop(box)
    point = in_pixels(Point(500, 500, Relative1000(on=crop)), 10, 20)
    assert point == Point(5, 10, ResizedPixels(10, 20, on=crop))


def test_sizes_tell_width_from_height() -> None:
    assert SourcePixels.of_size((480, 640)) == SourcePixels(640, 480)
    assert SourcePixels(4, 4) != ResizedPixels(4, 4)


@given(st.data(), spaces)
def test_no_way_leads_to_another_picture(data: st.DataObject, space: Space) -> None:
    box = data.draw(boxes(space))
    other = Crop(Box(0, 0, 1, 1, Relative1(on=Picture(1))))
    for target in (Relative1000(on=Picture(1)), SourcePixels(5, 5, on=other)):
        with pytest.raises(DataError, match="image 0 mean nothing in image 1") as caught:
            box.to(target)
        assert caught.value.code == Reason.BAD_GEOMETRY
        with pytest.raises(DataError, match="mean nothing"):
            grounding_text([Grounding(box)], target)
        with pytest.raises(DataError, match="mean nothing"):
            box.iou(Box(0, 0, 1, 1, target))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10**400])
def test_numbers_must_be_finite(bad: float) -> None:
    space = Relative1000()
    for make in (
        lambda: Box(bad, 0, 1, 1, space),
        lambda: Point(0, bad, space),
        lambda: Box3D((0, 0, bad), (1, 1, 1)),
        lambda: Box3D((0, 0, 0), (1, 1, 1), yaw_rad=bad),
        lambda: TimeSpan(0, bad),
        lambda: SourcePixels(bad, 3),
    ):
        with pytest.raises(DataError) as caught:
            make()
        assert caught.value.code == Reason.BAD_GEOMETRY


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(9, 0, 3, 5, Relative1000()), r"\[9, 0, 3, 5\] in Relative1000.*width, height"),
        (lambda: Box(0, 9, 3, 5, Relative1000()), "ends before it begins"),
        (lambda: Box3D((0, 0, 0), (1, -1, 1)), "negative size"),
        (lambda: TimeSpan(3, 2), r"TimeSpan\(start_s=3, end_s=2\)"),
        (lambda: TimeSpan(-1, 2), "begin before 0 s"),
        (lambda: ResizedPixels(0, 5), "wider and higher than 0"),
        (lambda: Crop(Box(3, 3, 3, 9, Relative1000())), "no area"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_boxes_beyond_the_view_have_no_text_until_clipped() -> None:
    box = Box(-5, 10, 1000, 1100, Relative1000())
    with pytest.raises(DataError, match=r"\[-5, 10, 1000, 1100\].*0 to 1000 down.*clip"):
        grounding_text([Grounding(box)])
    assert box.clipped() == Box(0, 10, 1000, 1000, Relative1000())
    with pytest.raises(DataError, match="outside altogether"):
        Box(1001, 0, 1200, 10, Relative1000()).clipped()
    with pytest.raises(DataError, match="beyond"):
        grounding_text([Grounding(Point(700, 300, SourcePixels(640, 480)))])
    almost = Box(-0.4, -0.4, 1000.4, 1000.4, Relative1000())  # rounding, not a wrong space
    assert grounding_text([Grounding(almost)]) == '[{"bbox_2d": [0, 0, 1000, 1000]}]'


@given(st.data(), st.lists(st.floats(-2, 3), min_size=4, max_size=4))
@example(None, [0.0, 0.0, 1.0, 1.0])
def test_clipping_is_the_intersection(data: st.DataObject | None, shares_: list[float]) -> None:
    x1, x2 = sorted(shares_[:2])
    y1, y2 = sorted(shares_[2:])
    assume(x2 >= 0 and y2 >= 0 and x1 <= 1 and y1 <= 1)
    space = SourcePixels(640, 480)
    clipped = Box(x1 * 640, y1 * 480, x2 * 640, y2 * 480, space).clipped()
    assert 0 <= clipped.x1 <= clipped.x2 <= 640
    assert 0 <= clipped.y1 <= clipped.y2 <= 480
    assert clipped.clipped() == clipped
    grounding_text([Grounding(clipped)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no box here", "not JSON"),
        ('[{"bbox_2d": [1, 2, 3, 4]', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[3]", "not an object"),
        ('[{"label": "a"}]', "exactly one of"),
        ('[{"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2]}]', "exactly one of"),
        ('[{"bbox_2d": [1, 2, 3]}]', "list of 4 numbers"),
        ('[{"bbox_2d": "1, 2, 3, 4"}]', "list of 4 numbers"),
        ('[{"bbox_2d": [1, 2, "3", 4]}]', "list of 4 numbers"),
        ('[{"bbox_2d": [1, 2, true, 4]}]', "list of 4 numbers"),
        ('[{"point_2d": [1, null]}]', "list of 2 numbers"),
        ('[{"bbox_3d": [1, 2, 3, 4, 5, 6]}]', "list of 9 numbers"),
        ('[{"bbox_2d": [5, 2, 3, 4]}]', "ends before"),
        ('[{"point_2d": [NaN, 2]}]', "finite"),
        ('[{"point_2d": [1e999, 2]}]', "finite"),
        ('[{"point_2d": [1, 2], "label": 3}]', "not text"),
        ('[{"start": "soon", "end": 3}]', "not a time"),
        ('[{"start": 1}]', "not a time"),
    ],
)
def test_malformed_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_groundings(text)
    assert caught.value.code == Reason.BAD_GEOMETRY
    assert len(str(caught.value)) < 300


def test_lenient_reading() -> None:
    expected = [Grounding(Box(1, 2.5, 3, 4, Relative1000()), "a")]
    for text in (
        '{"bbox_2d": [1, 2.5, 3, 4], "label": "a", "colour": "red"}',
        '```\n[{"label": "a", "bbox_2d": [1, 2.5, 3, 4]}]\n```',
        '```json\n[\n\t{"bbox_2d": [1, 2.5, 3, 4], "label": "a"}\n]```',
    ):
        assert parse_groundings(text) == expected
    assert parse_groundings('[{"start": "1:02:03.5", "end": 3724}]') == [
        Grounding(TimeSpan(3723.5, 3724))
    ]
    other = ResizedPixels(64, 64, on=Picture(2))
    (solid,) = parse_groundings('[{"bbox_3d": [0, 0, 1, 1, 1, 1, 0, 0, 0]}]', other)
    assert isinstance(solid.shape, Box3D)
    assert solid.shape.on == Picture(2)
    with pytest.raises(DataError, match="3-D box of image 2"):
        grounding_text([solid], Relative1000())


@given(st.floats(0, 10**5))
def test_clock_is_off_by_half_a_hundredth(time_s: float) -> None:
    minutes, rest = clock(time_s).split(":")
    assert len(rest) == 5
    assert float(rest) < 60
    assert abs(int(minutes) * 60 + float(rest) - time_s) <= 0.005 + 1e-9
