"""Errors that are for users."""


class UserError(ValueError):
    """Something the user can mend. Commands print its message without a traceback and exit with 2."""


class ConfigError(UserError):
    """An override or option that does not exist or does not fit; the message says what would."""


class MediaError(UserError):
    """A picture or video cannot be read; the message names the source and the reason."""


class CheckpointError(UserError):
    """A folder of weights cannot be read or written; the message names the file and the reason."""
