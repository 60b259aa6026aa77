"""Packages that only evaluation needs, imported when they are first used."""

from __future__ import annotations

import importlib
from types import ModuleType

from vlmkit.errors import UserError


def eval_package(module: str, needed_for: str) -> ModuleType:
    """A module of the extra `eval`.

    Args:
        module: as in an import statement.
        needed_for: what asked for it, for the message.

    Raises:
        UserError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{needed_for} needs {module.split('.')[0]} ({error}): pip install 'vlmkit[eval]'"
        ) from error
