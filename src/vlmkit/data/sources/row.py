"""A row of a table, looked at with suspicion: every value knows its place, and says so when it is wrong."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vlmkit.data.media import Blob
from vlmkit.errors import Reason, RecordError, listed


class Node:
    """A value of a row. What is absent and what is null are the same: Parquet knows no difference.

    Attributes:
        value: as the table gave it.
    """

    __slots__ = ("_parent", "_step", "value")

    def __init__(self, value: Any, parent: Node | None = None, step: str | int = "") -> None:
        self.value, self._parent, self._step = value, parent, step

    @property
    def origin(self) -> str:
        """Where the row stands."""
        return self._parent.origin if self._parent is not None else ""

    @property
    def path(self) -> str:
        """Place within the row, such as `messages[2].content`."""
        before = self._parent.path if self._parent is not None else ""
        if isinstance(self._step, int):
            return f"{before}[{self._step}]"
        return f"{before}.{self._step}" if before else self._step

    @property
    def name(self) -> str:
        """Place of row and value, for messages."""
        return " ".join(filter(None, (self.origin, self.path)))

    @property
    def is_there(self) -> bool:
        """Whether it is present and not null."""
        return self.value is not None

    def __getitem__(self, key: str) -> Node:
        """The value at `key` of an object, null if absent.

        Raises:
            RecordError: this is no object.
        """
        return Node(self.mapping().get(key), self, key)

    def first_of(self, *keys: str) -> Node:
        """The only value that is there under any of the keys; the first key's if none is.

        Raises:
            RecordError: there are several, or this is no object.
        """
        mapping = self.mapping()
        there = [key for key in keys if mapping.get(key) is not None]
        if len(there) > 1:
            raise self.error(f"it has {' and '.join(there)}", "they mean the same: keep one")
        return self[there[0] if there else keys[0]]

    def mapping(self) -> Mapping[str, Any]:
        """The value, which must be an object."""
        if not isinstance(self.value, Mapping):
            raise self._not("an object")
        return self.value

    def items(self) -> list[Node]:
        """The elements of the value, which must be a list."""
        if not isinstance(self.value, list | tuple):
            raise self._not("a list")
        return [Node(value, self, i) for i, value in enumerate(self.value)]

    def text(self) -> str:
        """The value, which must be text."""
        if not isinstance(self.value, str):
            raise self._not("text")
        if not self.value.isascii():
            try:
                self.value.encode()
            except UnicodeEncodeError as error:
                raise self.error(
                    f"it holds half a character (\\u{ord(self.value[error.start]):04x}) at {error.start}",
                    "write the text anew",
                ) from error
        return self.value

    def number(self) -> float:
        """The value, which must be a finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self._not("a number")
        try:
            number = float(self.value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(f"it is {str(self.value)[:40]}", "give a finite number")
        return number

    def count(self) -> int:
        """The value, which must be a whole number from 0."""
        number = self.number()
        if number < 0 or number != int(number):
            raise self.error(f"it is {self.value}", "give a whole number, counted from 0")
        return int(number)

    def parsed(self) -> Node:
        """This, or what it holds if it is JSON in a text, as columns of Parquet files often are."""
        if not isinstance(self.value, str):
            return self
        try:
            return Node(json.loads(self.text()), self._parent, self._step)
        except (ValueError, RecursionError) as error:
            raise self.error(f"it is text that is not JSON ({error})", "mend it") from error

    def replaced(self, value: Any) -> Node:
        """The same place with another value, such as what its text stands for."""
        return Node(value, self._parent, self._step)

    def only(self, *known: str, ignored: Collection[str] = ()) -> None:
        """Refuse keys that nobody would look at.

        Raises:
            RecordError: there are some; names near matches.
        """
        unknown = [
            key
            for key, value in self.mapping().items()
            if value is not None and key not in known and key not in ignored
        ]
        if unknown:
            near = difflib.get_close_matches(str(unknown[0]), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise self.error(
                f"nothing is known about {listed(map(repr, unknown), most=5)}",
                f"{hint}name it in the layout's `ignored` if it does not matter",
            )

    def error(self, problem: str, remedy: str, code: Reason = Reason.BAD_RECORD) -> RecordError:
        """What is wrong with the value, where it stands, and what helps."""
        return RecordError(f"{self.name}: {problem}; {remedy}", code)

    def _not(self, wanted: str) -> RecordError:
        problem = "it is missing" if self.value is None else f"it is {kind_of(self.value)}"
        return self.error(problem, f"it must be {wanted}")


class Row(Node):
    """A whole row.

    Args:
        values: by column.
        origin: where it stands, for messages.
        key: its number; whatever is random about it derives from this.
    """

    __slots__ = ("_origin", "key")

    def __init__(self, values: Mapping[str, Any], origin: str = "row", key: int = 0) -> None:
        super().__init__(values)
        self._origin, self.key = origin, key

    @property
    def origin(self) -> str:
        """Where the row stands."""
        return self._origin

    def rest(self, *used: str | None) -> dict[str, Any]:
        """All other columns, for `Conversation.meta`; those that hold bytes are left out."""
        mapping = self.mapping()
        try:
            return {
                key: value
                for key, value in mapping.items()
                if key not in used and value is not None and is_plain(value)
            }
        except RecursionError as error:
            raise self.error("it is nested too deeply", "make its other columns flatter") from error


def is_plain(value: Any) -> bool:
    """Whether a value could stand in a JSON file."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, str | int | float | bool | None)


def is_blob(value: Any) -> bool:
    """Whether a value is bytes that can be fetched, such as a file of a shard."""
    return hasattr(value, "read") and hasattr(value, "name")


def blobs_of(row: Mapping[str, Any]) -> Iterator[tuple[str, Blob]]:
    """Columns that are bytes to be fetched."""
    return ((key, value) for key, value in row.items() if is_blob(value))


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if isinstance(value, bool):
        return "true or false"
    names: dict[type | tuple[type, ...], str] = {
        str: "text",
        (int, float): "a number",
        Mapping: "an object",
        (list, tuple): "a list",
        bytes: "bytes",
    }
    for kinds, name in names.items():
        if isinstance(value, kinds):
            return name
    return "null" if value is None else f"a {type(value).__name__}"
