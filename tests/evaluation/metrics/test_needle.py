from __future__ import annotations

import numpy as np
import pytest

from vlmkit.evaluation.metrics.needle import Needle, NeedleGrid


def test_cells_by_hand():
    metric = NeedleGrid(lengths=(1024, 4096), depths=(0, 0.5, 1))
    rows = [(1024, 0, 1), (1024, 0, 0), (1024, 1, 1), (4096, 0.5, 0)]
    for key, (length, depth, right) in enumerate(rows):
        metric.update("it is 7" if right else "no", Needle("7", length, depth, chance=0.1), key)
    grid, result = metric.grid(), metric.compute()
    nan = np.nan
    np.testing.assert_array_equal(grid.accuracy, [[0.5, nan, 1], [nan, 0, nan]])
    np.testing.assert_array_equal(grid.counts, [[2, 0, 1], [0, 1, 0]])
    assert result.value == 0.5
    assert result.parts["length=1024"].value == pytest.approx(2 / 3)
    assert result.parts["length=4096"].value == 0
    assert result.chance == pytest.approx(0.1)


def test_a_cell_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no cell"):
        NeedleGrid((1,), (0,)).update("7", Needle("7", 2, 0), 1)
