"""The blocks of a page that was written as Markdown: paragraphs, formulas, tables, in reading order."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["text", "formula", "table"]


class Block(NamedTuple):
    """A piece of a page.

    Attributes:
        kind: `text`, `formula` or `table`.
        text: of a paragraph without Markdown signs; LaTeX without delimiters; HTML, pipes or LaTeX.
    """

    kind: Kind
    text: str


_BLOCKS = re.compile(
    r"(?P<table><table\b.*?</table>|\\begin\{(?P<name>tabular[x*]?)\}.*?\\end\{(?P=name)\}"
    r"|^[^\n]*\|[^\n]*\n\s*\|?\s*:?-+[-:|\s]*\n(?:[^\n]*\|[^\n]*(?:\n|\Z))*)"
    r"|\$\$(?P<dollars>.*?)\$\$|\\\[(?P<brackets>.*?)\\\]"
    r"|\\begin\{(?P<env>equation|align|gather)\*?\}(?P<inside>.*?)\\end\{(?P=env)\*?\}",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r"\A\s*```(?:markdown|md)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_SIGNS = re.compile(r"^\s{0,3}(?:#{1,6}\s+|>\s?|[-*+]\s+)", re.MULTILINE)


def document_blocks(text: str) -> list[Block]:
    """Blocks in order; comments, such as those with coordinates, and pictures are left out."""
    fenced = _FENCE.match(text)
    text = _PICTURE.sub("", _COMMENT.sub("", fenced[1] if fenced else text))
    blocks: list[Block] = []
    done = 0
    for match in _BLOCKS.finditer(text):
        blocks.extend(_paragraphs(text[done : match.start()]))
        done = match.end()
        if match["table"]:
            blocks.append(Block("table", match["table"]))
        else:
            formula = (match["dollars"] or match["brackets"] or match["inside"] or "").strip()
            blocks.extend([Block("formula", formula)] if formula else [])
    return [*blocks, *_paragraphs(text[done:])]


def _paragraphs(text: str) -> list[Block]:
    plain = (_SIGNS.sub("", part).replace("**", "") for part in re.split(r"\n\s*\n", text))
    joined = (" ".join(part.split()) for part in plain)
    return [Block("text", part) for part in joined if part]
