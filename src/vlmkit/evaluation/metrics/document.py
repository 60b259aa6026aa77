"""Pages read off pictures: tables (TEDS), formulas, and whole documents as OmniDocBench scores them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmkit.errors import UserError
from vlmkit.evaluation.extract.blocks import Block, document_blocks
from vlmkit.evaluation.extras import eval_package
from vlmkit.evaluation.html_tables import Node, table_tree, tree_similarity
from vlmkit.evaluation.metrics.base import ScoredMetric, Values, ratio
from vlmkit.evaluation.metrics.ocr import NormalizedEditDistance, compatible, edits


class TEDS(ScoredMetric):
    """Tree-edit-distance similarity of tables: `teds` and `structure`. Targets are HTML.

    A text without a table is a parse failure and scores 0; nothing falls back to comparing strings.
    Source: Zhong et al. 2020, PubTabNet.

    Args:
        sections: tell `thead` from `tbody`, as PubTabNet does and OmniDocBench does not.
        max_nodes: a larger table in a text is a parse failure, as the distance takes cubic time.
    """

    columns = ("teds", "structure")

    def __init__(self, sections: bool = False, max_nodes: int = 2000, **options: Any) -> None:
        super().__init__(**options)
        self.sections = sections
        self.max_nodes = max_nodes

    def score(self, text: str, target: str) -> list[float] | None:
        """See the class."""
        truth = true_table(target, self.sections, self.max_nodes)
        found = table_tree(text, self.sections)
        return None if found is None or found.size > self.max_nodes else _similarities(found, truth)

    def values(self, sums: np.ndarray) -> Values:
        """`teds` and `structure`."""
        return {name: ratio(sums[..., i], sums[..., -1]) for i, name in enumerate(self.columns)}


class FormulaEditDistance(NormalizedEditDistance):
    r"""Mean normalised edit distance of LaTeX tokens: 0 is equal. It is not CDM, which compares pictures.

    Spacing, sizes, delimiters, labels and braces around one token make no difference, and `\dfrac` is
    `\frac`; `x^2_1` and `x_1^2` remain different. Targets are LaTeX.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(normalize=str, **options)

    def units(self, text: str) -> Sequence[str]:
        """Tokens."""
        return latex_tokens(text)


class DocumentScore(ScoredMetric):
    r"""A page of text, formulas and tables, in the manner of OmniDocBench (Ouyang et al. 2024).

    Targets are `Block`s in reading order. Blocks of one kind are matched one to one so that their edit
    distances are least in sum (Hungarian method). A block that only one side has counts as a distance
    of 1, or a TEDS of 0. OmniDocBench itself also joins and splits paragraphs before it matches, so
    its figures are near these and not equal.

    Values, each a mean over the pages that have such blocks on either side: `text_edit`,
    `formula_edit` (LaTeX tokens, not CDM), `table_teds`, `table_structure`, `table_edit`, `order_edit`
    (order of the matched paragraphs). `overall` is the mean of `1 - text_edit`, `table_teds` and
    `1 - formula_edit`; `overall_edit` that of the four edit distances, as in the first version of
    the benchmark, where less is better. Kinds that no page has are left out of both.

    Args:
        max_nodes: of a table, see `TEDS`.
    """

    parts = (
        "text_edit",
        "formula_edit",
        "table_teds",
        "table_structure",
        "table_edit",
        "order_edit",
    )
    columns = ("page", *parts, *(f"has_{name}" for name in parts))

    def __init__(self, max_nodes: int = 2000, **options: Any) -> None:
        super().__init__(**options)
        self.max_nodes = max_nodes

    def score(self, text: str, target: Sequence[Block]) -> list[float]:
        """See the class."""
        return self._row(document_blocks(text), target)

    def failure(self, target: Sequence[Block]) -> list[float]:
        """A page without any block."""
        return self._row([], target)

    def values(self, sums: np.ndarray) -> Values:
        """See the class."""
        count = len(self.parts)
        means = ratio(sums[..., 1 : count + 1], sums[..., count + 1 : 2 * count + 1])
        found = {name: means[..., i] for i, name in enumerate(self.parts)}
        similar = [1 - found["text_edit"], found["table_teds"], 1 - found["formula_edit"]]
        distant = [
            found[name] for name in ("text_edit", "formula_edit", "table_edit", "order_edit")
        ]
        return {"overall": _mean_of(similar), "overall_edit": _mean_of(distant), **found}

    def _row(self, found: Sequence[Block], truth: Sequence[Block]) -> list[float]:
        if not truth:
            raise ValueError("a page without blocks has nothing to compare")
        values: dict[str, float] = {}
        said, true = (
            [compatible(b.text) for b in side if b.kind == "text"] for side in (found, truth)
        )
        if said or true:
            pairs = matched(said, true)
            values["text_edit"] = _edit_share(said, true, pairs)
            order = [column for _, column in sorted(pairs)]
            values["order_edit"] = edits(order, range(len(true))) / max(len(order), len(true))
        said_formulas, true_formulas = (
            [latex_tokens(b.text) for b in side if b.kind == "formula"] for side in (found, truth)
        )
        if said_formulas or true_formulas:
            pairs = matched(said_formulas, true_formulas)
            values["formula_edit"] = _edit_share(said_formulas, true_formulas, pairs)
        values |= self._tables(
            [b.text for b in found if b.kind == "table"],
            [true_table(b.text, False, self.max_nodes) for b in truth if b.kind == "table"],
        )
        similar = [
            values[name] if name == "table_teds" else 1 - values[name]
            for name in ("text_edit", "table_teds", "formula_edit")
            if name in values
        ]
        numbers = [values.get(name, 0.0) for name in self.parts]
        return [float(np.mean(similar)), *numbers, *(float(n in values) for n in self.parts)]

    def _tables(self, written: Sequence[str], true: Sequence[Node]) -> dict[str, float]:
        if not written and not true:
            return {}
        trees = [table_tree(text) for text in written]
        # What is no table, or too large a one, has an empty text and matches nothing.
        usable = [tree if tree and tree.size <= self.max_nodes else None for tree in trees]
        said_text = [compatible(tree.text) if tree else "" for tree in usable]
        true_text = [compatible(tree.text) for tree in true]
        pairs = matched(said_text, true_text)
        similar = np.zeros(2)
        for row, column in pairs:
            tree = usable[row]
            if tree is not None:
                similar += _similarities(tree, true[column])
        both = max(len(written), len(true))
        return {
            "table_teds": float(similar[0] / both),
            "table_structure": float(similar[1] / both),
            "table_edit": _edit_share(said_text, true_text, pairs),
        }


def true_table(text: str, sections: bool, max_nodes: int) -> Node:
    """The table of a truth.

    Raises:
        ValueError: there is none.
        UserError: it has more nodes than are compared.
    """
    tree = table_tree(text, sections)
    if tree is None:
        raise ValueError(f"the truth holds no table: {text[:80]!r}")
    if tree.size > max_nodes:
        raise UserError(
            f"a table of the truth has {tree.size} nodes, more than max_nodes={max_nodes}; raise it, "
            "and expect minutes for such a table"
        )
    return tree


def matched(
    found: Sequence[Sequence[Any]], truth: Sequence[Sequence[Any]]
) -> list[tuple[int, int]]:
    """Pairs (found, truth) with the least sum of normalised edit distances; none of distance 1."""
    if not found or not truth:
        return []
    cost = np.array([[_distance(a, b) for b in truth] for a in found])
    optimize = eval_package("scipy.optimize", "matching of blocks")
    pairs = zip(*optimize.linear_sum_assignment(cost), strict=True)
    return [
        (int(a), int(b)) for a, b in pairs if cost[a, b] < 1 or len(truth[b]) == len(found[a]) == 0
    ]


_TOKENS = re.compile(r"\\[A-Za-z]+\*?|\\.|[^\s\\]", re.DOTALL)
_NO_MEANING = {
    *(
        "\\left",
        "\\right",
        "\\big",
        "\\Big",
        "\\bigg",
        "\\Bigg",
        "\\bigl",
        "\\bigr",
        "\\Bigl",
        "\\Bigr",
    ),
    *("\\displaystyle", "\\textstyle", "\\limits", "\\nolimits", "\\nonumber", "\\notag"),
    *("\\,", "\\;", "\\:", "\\!", "\\ ", "\\quad", "\\qquad", "~", "$", "\\[", "\\]", "\\(", "\\)"),
}
_SAME = {
    **dict.fromkeys(("\\dfrac", "\\tfrac", "\\cfrac"), "\\frac"),
    **dict.fromkeys(
        ("\\operatorname", "\\operatorname*", "\\text", "\\textrm", "\\rm"), "\\mathrm"
    ),
    **{"\\le": "\\leq", "\\ge": "\\geq", "\\ne": "\\neq", "\\to": "\\rightarrow"},
    **{"\\lbrack": "[", "\\rbrack": "]", "\\lvert": "|", "\\rvert": "|", "\\vert": "|"},
    **{"\\boldsymbol": "\\mathbf", "\\bm": "\\mathbf", "\\ldots": "\\dots", "\\cdots": "\\dots"},
}
_LABELS = re.compile(r"\\(?:tag|label)\*?\s*\{[^{}]*\}")


def latex_tokens(text: str) -> list[str]:
    """LaTeX as commands and characters, without what makes no difference to the formula."""
    found = _TOKENS.findall(_LABELS.sub("", text))
    tokens = [_SAME.get(token, token) for token in found if token not in _NO_MEANING]
    plain: list[str] = []
    for token in tokens:
        if token == "}" and len(plain) >= 2 and plain[-2] == "{":
            plain[-2:] = plain[-1:]  # {x} is x
        else:
            plain.append(token)
    return plain


def _similarities(found: Node, truth: Node) -> list[float]:
    return [tree_similarity(found, truth, structure_only=only) for only in (False, True)]


def _distance(a: Sequence[Any], b: Sequence[Any]) -> float:
    return edits(a, b) / max(len(a), len(b), 1)


def _edit_share(
    found: Sequence[Sequence[Any]],
    truth: Sequence[Sequence[Any]],
    pairs: Sequence[tuple[int, int]],
) -> float:
    """Edits over longer lengths, summed over pairs; a block without a partner is all edits."""
    changed = sum(edits(found[a], truth[b]) for a, b in pairs)
    length = sum(max(len(found[a]), len(truth[b])) for a, b in pairs)
    partners = {a for a, _ in pairs}, {b for _, b in pairs}
    alone = sum(
        max(len(block), 1)
        for side, taken in zip((found, truth), partners, strict=True)
        for i, block in enumerate(side)
        if i not in taken
    )
    return (changed + alone) / (length + alone) if length + alone else 0.0


def _mean_of(values: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of those that are numbers, NaN without any."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    return ratio(np.where(known, stacked, 0).sum(0), known.sum(0))
