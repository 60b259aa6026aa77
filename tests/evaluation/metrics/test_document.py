from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import table_recognition_metric
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.errors import UserError
from vlmkit.evaluation.extract.blocks import Block, document_blocks
from vlmkit.evaluation.html_tables import table_tree, tree_similarity
from vlmkit.evaluation.metrics.document import (
    TEDS,
    DocumentScore,
    FormulaEditDistance,
    latex_tokens,
    matched,
)
from vlmkit.evaluation.metrics.ocr import edits

SMALL = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>"


def html_table(rows) -> str:
    cells = ("".join(f"<td{attrs}>{text}</td>" for text, attrs in row) for row in rows)
    return f"<html><body><table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></body></html>"


def random_table(rng: random.Random) -> str:
    attrs = ["", "", "", ' colspan="2"', ' rowspan="2"']
    words = ["one", "two", "1.5", "<b>x</b>y", "", "long words here"]
    return html_table(
        [
            [(rng.choice(words), rng.choice(attrs)) for _ in range(rng.randint(1, 3))]
            for _ in range(rng.randint(1, 4))
        ]
    )


def test_teds_is_that_of_the_public_package():
    oracle = table_recognition_metric.TEDS
    rng = random.Random(0)
    for _ in range(25):
        a, b = random_table(rng), random_table(rng)
        trees = table_tree(a, sections=True), table_tree(b, sections=True)
        for only in (False, True):
            expected = oracle(structure_only=only)(a, b)
            assert tree_similarity(*trees, structure_only=only) == pytest.approx(expected, abs=1e-9)


def tree_edits(a, b, structure_only) -> float:
    """Edit distance of ordered forests straight from its recursion (Tai 1979): slow and plain."""

    def cost(x, y) -> float:
        if x.tag != y.tag or x.span != y.span:
            return 1
        longest = max(len(x.content), len(y.content))
        return 0 if structure_only or not longest else edits(x.content, y.content) / longest

    def size(forest) -> int:
        return sum(tree.size for tree in forest)

    def forests(f, g) -> float:
        if not f or not g:
            return size(f) + size(g)
        key = tuple(map(id, f)), tuple(map(id, g))
        if key not in seen:
            (*f0, x), (*g0, y) = f, g
            seen[key] = min(
                forests((*f0, *x.children), g) + 1,
                forests(f, (*g0, *y.children)) + 1,
                forests(tuple(f0), tuple(g0))
                + forests(tuple(x.children), tuple(y.children))
                + cost(x, y),
            )
        return seen[key]

    seen = {}
    return forests((a,), (b,))


def test_teds_is_that_of_the_plain_recursion():
    rng = random.Random(1)
    for _ in range(12):
        a, b = (table_tree(random_table(rng)) for _ in "ab")
        for only in (False, True):
            expected = 1 - tree_edits(a, b, only) / max(a.size, b.size)
            assert tree_similarity(a, b, structure_only=only) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "teds", "structure"),
    [
        (SMALL, 1, 1),
        (f"Sure:\n```html\n{SMALL}\n```", 1, 1),
        (SMALL.replace("td>", "th>").replace("<table>", "<table><tbody>"), 1, 1),
        (SMALL.replace("</td>", "").replace("</tr>", ""), 1, 1),  # HTML may leave them out
        ("| a | b |\n|---|:-:|\n| c | d |", 1, 1),
        (r"\begin{tabular}{l|c} \hline a & b \\ c & d \\ \hline \end{tabular}", 1, 1),
        (SMALL.replace(">b<", ">x<"), 1 - 1 / 7, 1),
        (SMALL.replace("<td>d</td>", ""), 1 - 1 / 7, 1 - 1 / 7),
        (SMALL[: SMALL.index("<tr><td>c")], 4 / 7, 4 / 7),  # cut off
        ("a b c d", 0, 0),
        ("<table></table>", 0, 0),
        ("", 0, 0),
    ],
)
def test_tables_by_hand(text, teds, structure):
    row, failed = TEDS().scored(text, SMALL)
    assert row == pytest.approx([teds, structure])
    assert failed is (teds == 0)


def test_spans_of_latex_tables():
    latex = (
        r"\begin{tabular}{|c|c|}\multicolumn{2}{c}{a \& b} \\ \multirow{2}{*}{c} & d \end{tabular}"
    )
    html = (
        '<table><tr><td colspan="2">a &amp; b</td></tr>'
        '<tr><td rowspan="2">c</td><td>d</td></tr></table>'
    )
    assert TEDS().scored(latex, html)[0] == [1, 1]


def test_tables_that_are_no_truth_or_too_large():
    metric = TEDS(max_nodes=5)
    with pytest.raises(UserError, match="7 nodes, more than max_nodes=5"):
        metric.update(SMALL, SMALL, 1)
    one = "<table><tr><td>a</td></tr></table>"
    assert metric.scored(SMALL, one) == ([0, 0], True)
    with pytest.raises(ValueError, match="holds no table"):
        metric.update(SMALL, "a | b", 1)


@given(st.lists(st.sampled_from(["<table>", "<tr>", "<td>", "</td>", "</tr>", "x", "</table>", "<td colspan='9x'>", "<!--", "&amp", "|", "\n|-|\n", "\\begin{tabular}", "\\end{tabular}", "&", "{"]), max_size=25).map("".join))  # fmt: skip  # noqa: E501
def test_any_markup_is_a_table_or_none(text):
    row, failed = TEDS().scored(text, SMALL)
    assert 0 <= row[0] <= 1
    assert not failed or row == [0, 0]
    document_blocks(text)


def test_latex_tokens():
    assert latex_tokens(r"\dfrac {1}{2}") == ["\\frac", "1", "2"]
    same = [r"x^{2}", "x ^ 2", r"$$x^2 \tag{3}$$", r"\left. x^2\right."]
    assert [latex_tokens(text) for text in same[:3]] == [["x", "^", "2"]] * 3
    metric = FormulaEditDistance()
    metric.update(r"\alpha+\beta", r"\alpha-\beta", 1)
    metric.update("", r"\alpha", 2)
    assert list(metric.per_sample().scores) == pytest.approx([1 / 3, 1])


def test_blocks_of_a_page():
    page = f"# Title\n\nSome **bold**\ntext\n\n$$x^2$$\n\n<!-- Table (1, 2, 3, 4) -->\n{SMALL}\n\n![](u)\nEnd"
    kinds = [("text", "Title"), ("text", "Some bold text"), ("formula", "x^2"), ("table", SMALL)]
    assert document_blocks(page) == [*(Block(*pair) for pair in kinds), Block("text", "End")]
    assert document_blocks(f"```markdown\n{page}\n```") == document_blocks(page)


def test_matching_is_the_best_of_all():
    rng = random.Random(2)
    words = ["alpha", "alp", "beta", "bet", "gamma", "alga"]
    for _ in range(20):
        found, truth = rng.choices(words, k=3), rng.choices(words, k=4)

        def cost(a, b):
            return edits(a, b) / max(len(a), len(b))

        best = min(
            sum(cost(found[i], truth[j]) for i, j in enumerate(order))
            for order in itertools.permutations(range(4), 3)
        )
        pairs = matched(found, truth)
        assert sum(cost(found[i], truth[j]) for i, j in pairs) + 3 - len(pairs) == pytest.approx(
            best
        )


def test_a_page_by_hand():
    truth = [
        Block("text", "abcd"),
        Block("text", "wxyz"),
        Block("formula", "x+y"),
        Block("table", SMALL),
    ]
    perfect = f"abcd\n\nwxyz\n\n$$x+y$$\n\n{SMALL}"
    metric = DocumentScore()
    metric.update(perfect, truth, 1)
    assert metric.compute().value == 1
    assert metric.compute().parts["overall_edit"].value == 0
    metric.update("wxyz\n\nabce\n\n$$x-y$$", truth, 2)
    values = {name: part.value for name, part in metric.compute().parts.items()}
    expected = {
        "text_edit": 1 / 8 / 2,
        "formula_edit": 1 / 3 / 2,
        "table_teds": 1 / 2,
        "table_structure": 1 / 2,
        "table_edit": 1 / 2,
        "order_edit": 1 / 2,  # two of two places differ on the second page
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert values["overall"] == pytest.approx(np.mean([1 - 1 / 16, 1 / 2, 1 - 1 / 6]))
    assert values["overall_edit"] == pytest.approx(np.mean([1 / 16, 1 / 6, 1 / 2, 1 / 2]))


def test_an_empty_page_and_what_is_not_there():
    truth = [Block("text", "abcd"), Block("table", SMALL)]
    metric = DocumentScore()
    assert metric.scored("", truth)[0][:4] == [0, 1, 0, 0]
    _, text_edit, *_ = metric.scored("abcd\n\nefgh", [Block("text", "abcd")])[0]
    assert text_edit == 0.5  # what was made up counts
    with pytest.raises(ValueError, match="nothing to compare"):
        metric.update("x", [], 1)
