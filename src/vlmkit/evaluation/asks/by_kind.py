"""Benchmarks of several kinds of questions, each asked and scored its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlmkit.data.sources.row import Row
from vlmkit.errors import listed
from vlmkit.evaluation.asks.values import at, text_of
from vlmkit.evaluation.metrics.by_kind import Kinded
from vlmkit.evaluation.question import Ask, Question


@dataclass(frozen=True, kw_only=True)
class AskByKind:
    """Asks by the value of a column; targets are `Kinded`, for the metric `ByKind`.

    Keys begin with the kind, which is a category, too.

    Attributes:
        asks: by kind.
        column: whose value says which kind a row is.
        kinds: kind by value; an empty value is `""`.
        otherwise: kind of all other values; None: there must be none.
        part: category whose values count alike in the average, however many questions they have;
            `kind`: the kinds do.
    """

    asks: Mapping[str, Ask]
    column: str
    kinds: Mapping[str, str]
    otherwise: str | None = None
    part: str | None = None

    def __call__(self, row: Mapping[str, Any], index: int, origin: str) -> Question:
        """See `Ask`."""
        node = at(Row(row, origin, index), self.column)
        value = (text_of(node) or "").strip()
        kind = self.kinds.get(value, self.otherwise)
        if kind is None:
            raise node.error(f"it is {value!r}", f"known are {listed(map(repr, self.kinds))}")
        question = self.asks[kind](row, index, origin)
        question = replace(
            question,
            key=f"{kind}/{question.key}",
            categories={"kind": kind, **question.categories},
        )
        return _kinded(question, kind, self.part)


@dataclass(frozen=True, kw_only=True)
class AskInParts:
    """Asks one way; targets are `Kinded`, so that parts count alike in the average.

    Attributes:
        ask: of all rows.
        part: category whose values are the parts.
        kind: name of the metric of `ByKind`.
    """

    ask: Ask
    part: str
    kind: str = "all"

    def __call__(self, row: Mapping[str, Any], index: int, origin: str) -> Question:
        """See `Ask`."""
        return _kinded(self.ask(row, index, origin), self.kind, self.part)


def _kinded(question: Question, kind: str, part: str | None) -> Question:
    name = question.categories.get(part, "") if part is not None else ""
    return replace(question, target=Kinded(kind, question.target, name))
