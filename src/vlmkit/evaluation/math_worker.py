"""Compares two mathematical expressions per line of standard input: run as a process that may be killed.

Symbolic comparison can take for ever, inside one C call that no signal interrupts, and math-verify's own
time limit works in the main thread only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import sys
from typing import Any

MAX_BYTES = 4 * 2**30
"""Address space: 10**10**10 should end this process and not the machine."""


def answer(request: dict[str, str]) -> dict[str, bool]:
    """Whether the truth could be read, the text could be read, and both are equal.

    Args:
        request: `text` and `gold`, LaTeX or plain.
    """
    gold = _parsed(request["gold"])
    said = _parsed(request["text"])
    return {"gold": bool(gold), "said": bool(said), "equal": _equal(gold, said)}


def _equal(gold: list[Any], said: list[Any]) -> bool:
    from math_verify import verify

    return bool(gold and said) and bool(verify(gold, said, timeout_seconds=None))


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    return parse(text, fallback_mode="no_fallback", parsing_timeout=None)


def main() -> None:
    """Answer until standard input ends."""
    logging.disable(logging.CRITICAL)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or soft > MAX_BYTES:
        with contextlib.suppress(ValueError):  # not every system has this limit
            resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, hard))
    answer({"text": "$x+1$", "gold": "$1+x$"})  # imports everything before the clock runs
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            verdict = answer(json.loads(line))
        except Exception:  # whatever a parser makes of a model's text, it is no answer
            verdict = {"gold": True, "said": False, "equal": False}
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
