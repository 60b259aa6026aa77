"""Lines of the plots go through the numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.inspection import gallery
from vlmkit.inspection.charts import PLOT_HEIGHT, position_paths, stretches, ticks
from vlmkit.inspection.view import Kind


@pytest.fixture(scope="module")
def batch():
    return gallery.everything()


def test_lines_go_through_every_position(batch):
    for row in batch.rows:
        paths, top = position_paths(row)
        for path, values in zip(paths, row.positions, strict=True):
            pieces = [piece for piece in path.split("M") if piece]
            assert len(pieces) == len(row.samples)
            for piece, sample in zip(pieces, row.samples, strict=True):
                x, y = np.array(re.findall(r"([\d.e-]+) ([\d.e-]+)", piece), dtype=float).T
                places = np.arange(sample.start, sample.stop)
                drawn = (1 - np.interp(places + 0.5, x, y) / PLOT_HEIGHT) * top
                expected = values[sample.start : sample.stop]
                np.testing.assert_allclose(drawn, expected, atol=1e-3 * top)  # measured 5e-5 * top


def test_long_text_is_two_points(batch):
    (chat,) = [s for s in batch.rows[0].samples if s.source == "chat"]
    piece = position_paths(batch.rows[0])[0][0].split("M")[1 + batch.rows[0].samples.index(chat)]
    assert piece.count("L") == 1


def test_stretches_cover_a_row_once():
    kinds = np.array([0, 0, 1, 2, 2, 3], dtype=np.uint8)
    assert list(stretches(kinds)) == [
        (0, 2, Kind.MASKED),
        (2, 1, Kind.SUPERVISED),
        (3, 2, Kind.VISUAL),
        (5, 1, Kind.PADDING),
    ]


@pytest.mark.parametrize("top", [1, 7, 64, 999, 8192, 262_144])
def test_ticks_are_few_and_round(top):
    values = ticks(top)
    assert values[0] == 0
    assert 2 <= len(values) <= 11
    assert values[-1] <= top
