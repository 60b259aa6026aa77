"""Values of a row, however the file writes them: lists as lists or as Python text, numbers as texts."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit.data.sources.row import Node, Row


def at(row: Node, path: str) -> Node:
    """The value at a column, or below it: `page_info.page_attribute.language`; null where there is none."""
    mapping = row.mapping()
    if path in mapping or "." not in path:
        return row[path]
    first, _, rest = path.partition(".")
    inner = row[first].parsed()
    return at(inner, rest) if isinstance(inner.value, Mapping) else Node(None, row, path)


def text_of(node: Node) -> str | None:
    """A text or number as text; None where there is nothing, or only white space."""
    value = node.value
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        return node.text() if value.strip() else None
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(text_of, node.items())))
    raise node.error("it is no text", "name another column")


def needed(node: Node) -> str:
    """A text that must be there.

    Raises:
        RecordError: it is not.
    """
    found = text_of(node)
    if found is None:
        raise node.error(
            "it is missing", "this benchmark needs it: is it the file that its YAML names?"
        )
    return found


def number_of(node: Node) -> float:
    """A number, or a text that is one.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(node.value, str):
        return node.number()
    try:
        return node.replaced(float(node.value)).number()
    except ValueError as error:
        raise node.error(f"it is {node.value[:40]!r}", "it must be a number") from error


def listed(node: Node) -> list[Node]:
    """The elements of a list, or of a text that is a list in Python or JSON; one value counts as a list."""
    value = literal(node.value)
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return node.replaced(value).items()
    return [node]


def literal(value: Any) -> Any:
    """What a text stands for that is a list, tuple or object in JSON or Python; all else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if (text[:1], text[-1:]) not in (("[", "]"), ("(", ")"), ("{", "}")):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def numbers_of(node: Node, count: int) -> list[float]:
    """So many numbers: a list of them, or a text that is one.

    Raises:
        RecordError: there are others.
    """
    found = [number_of(item) for item in listed(node)]
    if len(found) != count:
        raise node.error(f"it has {len(found)} numbers", f"it must have {count}")
    return found


def fill(template: str, row: Row, values: Mapping[str, str] | None = None) -> str:
    """A template with the columns it names: `"{question} Answer briefly."`.

    Args:
        template: `{column}`, or `{column.below}`; `{{` and `}}` stand for braces.
        row: its columns; those in the template must be there.
        values: come before the columns.

    Raises:
        RecordError: a column is missing.
    """
    filled = []
    for before, name, _, _ in string.Formatter().parse(template):
        filled.append(before)
        if name is not None:
            known = (values or {}).get(name)
            filled.append(needed(at(row, name)) if known is None else known)
    return "".join(filled)


def first_there(row: Row, columns: Sequence[str]) -> Node:
    """The first of some columns that is filled; the first where none is."""
    nodes = [at(row, column) for column in columns]
    return next((node for node in nodes if node.value not in (None, "", [])), nodes[0])
