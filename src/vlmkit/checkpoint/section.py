"""One table of a published config.json, read with errors that name the full key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit.errors import CheckpointError


class Section:
    """Part of a published config; `null` counts as absent, as it does for transformers."""

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{name} is missing or not a table of settings")
        self.values, self.name = values, name

    def path(self, key: str) -> str:
        """The key with the section it stands in."""
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str, default: Any = None) -> Any:
        """A setting, or the default where it is absent."""
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        """A number.

        Raises:
            CheckpointError: there is none, or it is something else.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.path(key)} must be a number, it is {json.dumps(value)}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer.

        Raises:
            CheckpointError: there is none, or it is something else.
        """
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.path(key)} must be a positive integer, it is {value}")
        return value

    def side(self, key: str, default: int) -> int:
        """A length that may also be written as a list of equal lengths.

        Raises:
            CheckpointError: the lengths differ.
        """
        value = self.get(key, default)
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int):
            raise CheckpointError(f"{self.path(key)} must be one length, it is {json.dumps(value)}")
        return value

    def require(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Check settings of which only some values are supported.

        Raises:
            CheckpointError: a setting has another value; names both.
        """
        for key, values in allowed.items():
            value = self.get(key)
            if value is not None and value not in values:
                raise CheckpointError(
                    f"{self.path(key)} is {json.dumps(value)}, "
                    f"vlmkit supports only {json.dumps(values[0])}"
                )
