from __future__ import annotations

import sys

import pytest

from vlmkit.errors import UserError
from vlmkit.evaluation.metrics.short_answer import ANLS


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance.Levenshtein", None)
    with pytest.raises(
        UserError, match=r"edit distance needs rapidfuzz .*pip install 'vlmkit\[eval\]'"
    ):
        ANLS().update("a", "b", 1)
