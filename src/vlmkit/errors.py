"""Errors that are for users."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend. Commands print its message without a traceback and exit with 2."""


class ConfigError(UserError):
    """An override or option that does not exist or does not fit; the message says what would."""


class MediaError(UserError):
    """A picture or video cannot be read; the message names the source and the reason."""


class CheckpointError(UserError):
    """A folder of weights cannot be read or written; the message names the file and the reason."""


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first few names of many, for a message: `a, b and 3 more`."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
