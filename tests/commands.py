"""Runs a command in this process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from unittest.mock import patch


def run_command(main: Callable[[], None], *arguments: str) -> int:
    """Call an entry point as the command line would, and give its exit code.

    Hydra sets up logging anew, on streams that pytest closes after the test; the old handlers come back.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    code = 0
    with patch.object(sys, "argv", ["command", *arguments]):
        try:
            main()
        except SystemExit as stop:
            code = 0 if stop.code is None else int(stop.code)
        finally:
            root.handlers, root.level = handlers, level
    return code
