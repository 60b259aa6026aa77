"""Pages as the first version of OmniDocBench ranks them: by edit distance, where less is better."""

from __future__ import annotations

import numpy as np

from vlmkit.evaluation.metrics.base import Table, Values, ratio
from vlmkit.evaluation.metrics.document import DocumentScore


class PageEditDistance(DocumentScore):
    """`DocumentScore` with `overall_edit` in front: the mean distance of text, formulas, tables and order.

    A page's own score is the mean over the kinds of blocks that it has.
    """

    higher_is_better = False
    edits = ("text_edit", "formula_edit", "table_edit", "order_edit")

    def values(self, sums: np.ndarray) -> Values:
        """`overall_edit`, then the others."""
        found = super().values(sums)
        return {"overall_edit": found.pop("overall_edit"), **found}

    def sample_scores(self, table: Table) -> np.ndarray:
        """See the class."""
        places = [1 + self.parts.index(name) for name in self.edits]
        has = table.rows[:, [place + len(self.parts) for place in places]]
        return ratio((table.rows[:, places] * has).sum(1), has.sum(1))
