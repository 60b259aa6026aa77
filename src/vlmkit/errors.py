"""Errors that are for users."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class UserError(ValueError):
    """Something the user can mend. Commands print its message without a traceback and exit with 2."""


class ConfigError(UserError):
    """An override or option that does not exist or does not fit; the message says what would."""


class CheckpointError(UserError):
    """A folder of weights cannot be read or written; the message names the file and the reason."""


class Reason(StrEnum):
    """Why a sample is left out: the code that is counted and written to the list of skipped samples."""

    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"  # damaged, or not what its name says
    TOO_LARGE = "too_large"  # more pixels or bytes than are ever opened
    BAD_SHAPE = "bad_shape"  # no pixels, or sides too unequal
    NO_FRAMES = "no_frames"  # audio only, empty, or a stretch without frames
    NO_CLOCK = "no_clock"  # frames without times
    TIMEOUT = "timeout"  # decoding took longer than its limit
    DECODER_DIED = "decoder_died"
    QUARANTINED = "quarantined"  # it hung before
    NETWORK_REFUSED = "network_refused"
    BAD_RECORD = "bad_record"
    BAD_GEOMETRY = "bad_geometry"
    NOTHING_SCORED = "nothing_scored"
    TOO_LONG = "too_long"


class DataError(UserError):
    """A sample cannot be used; the message names the source and the reason, `code` counts it.

    Only this error leads to a skipped sample. Anything else is a mistake in the program and ends it.
    """

    def __init__(self, message: str, code: Reason = Reason.UNREADABLE) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way back from a worker process."""
        return type(self), (str(self), self.code)


class MediaError(DataError):
    """A picture or video cannot be read; the message names the source and the reason."""


class RecordError(DataError):
    """A record of a dataset is not what its layout says; the message names the file and the row."""

    def __init__(self, message: str, code: Reason = Reason.BAD_RECORD) -> None:
        super().__init__(message, code)


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first few names of many, for a message: `a, b and 3 more`."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
