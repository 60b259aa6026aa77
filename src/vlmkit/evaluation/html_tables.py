"""Tables as trees: out of HTML, pipes or LaTeX, and how many edits lie between two of them."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from vlmkit.evaluation.extras import eval_package

_SECTIONS = {"thead", "tbody", "tfoot"}
_INLINE = {"b": "b", "strong": "b", "i": "i", "em": "i", "u": "u", "sup": "sup", "sub": "sub"}
_MAX_SPAN = 1000  # as in the HTML standard


@dataclass
class Node:
    """A table, a section, a row or a cell.

    Attributes:
        tag: `table`, `thead`, `tr`, `td`, ...; header cells are `td`.
        span: columns and rows of a cell.
        content: characters and inline tags of a cell.
        children: in order.
    """

    tag: str
    span: tuple[int, int] = (1, 1)
    content: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Nodes of the tree."""
        return 1 + sum(child.size for child in self.children)

    @property
    def text(self) -> str:
        """Of all cells, in order."""
        own = "".join(part for part in self.content if not part.startswith("<"))
        return " ".join(filter(None, [own, *(child.text for child in self.children)]))


class _Reader(HTMLParser):
    """Builds the first table of a text; a table within a cell is text of the cell."""

    def __init__(self, sections: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.sections = sections
        self.table: Node | None = None
        self.depth = 0
        self.section: Node | None = None
        self.row: Node | None = None
        self.cell: Node | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open what the tag opens; what HTML leaves open is closed first."""
        if tag == "table":
            if self.table is None:
                self.table, self.depth = Node("table"), 1
            elif self.depth:
                self.depth += 1
        if self.table is None or self.depth != 1:
            return
        if tag in _SECTIONS and self.sections:
            self.section, self.row, self.cell = Node(tag), None, None
            self.table.children.append(self.section)
        elif tag == "tr":
            self.row, self.cell = Node("tr"), None
            (self.section or self.table).children.append(self.row)
        elif tag in ("td", "th"):
            if self.row is None:
                self.handle_starttag("tr", [])
            named = dict(attrs)
            self.cell = Node("td", (_span(named.get("colspan")), _span(named.get("rowspan"))))
            assert self.row is not None
            self.row.children.append(self.cell)
        elif self.cell is not None and tag in _INLINE:
            self.cell.content.append(f"<{_INLINE[tag]}>")
        elif self.cell is not None and tag == "br":
            self.cell.content.append(" ")

    def handle_endtag(self, tag: str) -> None:
        """Close."""
        if tag == "table" and self.depth:
            self.depth -= 1
        if self.depth != 1:
            return
        if tag in ("td", "th"):
            self.cell = None
        elif tag == "tr":
            self.row = self.cell = None
        elif tag in _SECTIONS:
            self.section = self.row = self.cell = None
        elif self.cell is not None and tag in _INLINE:
            self.cell.content.append(f"</{_INLINE[tag]}>")

    def handle_data(self, data: str) -> None:
        """Characters of a cell, with single spaces."""
        if self.cell is not None and self.depth:
            self.cell.content.extend(re.sub(r"\s+", " ", data))


def table_tree(text: str, sections: bool = False) -> Node | None:
    """The first table of a text with at least one cell, or None.

    Args:
        text: HTML; or a Markdown table of pipes, or a LaTeX tabular.
        sections: keep `thead` and `tbody` as nodes.
    """
    if not re.search(r"<table\b", text, re.IGNORECASE):
        text = _pipes_to_html(text) or _tabular_to_html(text) or ""
    reader = _Reader(sections)
    reader.feed(text)
    reader.close()
    if reader.table is None:
        return None
    _strip(reader.table)
    has_cells = reader.table.size > 1 and any(True for _ in _cells(reader.table))
    return reader.table if has_cells else None


def tree_similarity(a: Node, b: Node, *, structure_only: bool = False) -> float:
    """TEDS (Zhong et al. 2020): 1 - edits / nodes of the larger tree.

    A node is renamed at cost 1; a cell with other text at the normalised edit distance of its text.

    Args:
        a: a table.
        b: a table.
        structure_only: cells are equal whatever they say (TEDS-structure).
    """
    if a == b:
        return 1.0
    apted = eval_package("apted", "tree edit distance")
    levenshtein = eval_package("rapidfuzz.distance.Levenshtein", "tree edit distance")

    class Costs(apted.Config):  # type: ignore[name-defined, misc]
        def rename(self, x: Node, y: Node) -> float:
            if x.tag != y.tag or x.span != y.span:
                return 1.0
            if structure_only or x.content == y.content:
                return 0.0
            return levenshtein.normalized_distance(x.content, y.content)

        def children(self, node: Any) -> list[Node]:
            return node.children

    return 1 - float(apted.APTED(a, b, Costs()).compute_edit_distance()) / max(a.size, b.size)


def _cells(node: Node) -> Any:
    if node.tag == "td":
        yield node
    for child in node.children:
        yield from _cells(child)


def _strip(table: Node) -> None:
    for cell in _cells(table):
        while cell.content and cell.content[0] == " ":
            del cell.content[0]
        while cell.content and cell.content[-1] == " ":
            del cell.content[-1]


def _span(written: str | None) -> int:
    digits = (written or "").strip()
    valid = digits.isascii() and digits.isdigit() and len(digits) < 9
    return min(max(int(digits), 1), _MAX_SPAN) if valid else 1


_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")


def _pipes_to_html(text: str) -> str | None:
    """A Markdown table: a line of pipes, a rule, more lines of pipes."""
    lines = text.splitlines()
    for at in range(1, len(lines)):
        if "|" in lines[at - 1] and "-" in lines[at] and _RULE.fullmatch(lines[at][:2000]):
            rows = [lines[at - 1]]
            for line in lines[at + 1 :]:
                if "|" not in line:
                    break
                rows.append(line)
            return _rows_to_html(
                [
                    [
                        (html.escape(cell.strip()), 1, 1)
                        for cell in _split(row.strip().strip("|"), "|")
                    ]
                    for row in rows
                ]
            )
    return None


_TABULAR = re.compile(r"\\begin\{(tabular[x*]?)\}(.*?)\\end\{\1\}", re.DOTALL)
_LINES = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule)\b|\\c(?:line|midrule)(?:\([^)]*\))?\{[^}]*\}"
)
_SPANNED = re.compile(
    r"\\multi(column|row)\s*\{\s*(\d+)\s*\}\s*(?:\{[^{}]*\}|\[[^\]]*\]|\*)*\{(.*)\}$", re.DOTALL
)


def _tabular_to_html(text: str) -> str | None:
    """A LaTeX tabular, with spans of columns and rows."""
    match = _TABULAR.search(text)
    if not match:
        return None
    body = _without_arguments(match[2])
    rows = []
    for line in re.split(r"\\\\(?:\[[^\]]*\])?|\\tabularnewline", _LINES.sub("", body)):
        if line.strip():
            rows.append([_latex_cell(cell.strip()) for cell in _split(line, "&")])
    return _rows_to_html(rows)


def _without_arguments(body: str) -> str:
    r"""What follows the column specification and other braces right after `\\begin`."""
    body = body.lstrip()
    while body.startswith(("{", "[")):
        close = "}" if body[0] == "{" else "]"
        depth = 0
        for at, sign in enumerate(body):
            depth += (sign == body[0]) - (sign == close)
            if not depth:
                body = body[at + 1 :].lstrip()
                break
        else:
            return ""
    return body


def _latex_cell(cell: str) -> tuple[str, int, int]:
    columns = rows = 1
    while match := _SPANNED.match(cell):
        count = _span(match[2])
        columns, rows = (count, rows) if match[1] == "column" else (columns, count)
        cell = match[3].strip()
    return html.escape(re.sub(r"\\([&%$#_{}])", r"\1", cell)), columns, rows


def _split(line: str, sign: str) -> list[str]:
    return re.split(rf"(?<!\\){re.escape(sign)}", line)


def _rows_to_html(rows: list[list[tuple[str, int, int]]]) -> str:
    body = "".join(
        "<tr>"
        + "".join(f'<td colspan="{c}" rowspan="{r}">{text}</td>' for text, c, r in row)
        + "</tr>"
        for row in rows
    )
    return f"<table>{body}</table>"
