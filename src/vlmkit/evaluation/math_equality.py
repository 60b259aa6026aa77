"""Are two mathematical expressions equal? Asked of another process, within a time limit, from any thread."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from enum import Enum
from typing import Any

from vlmkit.errors import UserError
from vlmkit.evaluation.extras import eval_package


class Verdict(Enum):
    """What came of a comparison."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"  # the text holds no expression, or reading it took too long
    BAD_TRUTH = "bad truth"  # the truth itself cannot be read


class MathEquality:
    """Symbolic and numeric equality by math-verify.

    The process starts with the first question, and again after a question that took too long. Deep copies,
    such as those of a metric, share it; pickles start one of their own.

    Args:
        limit_s: seconds for one question.
        start_limit_s: seconds for the process to import what it needs.

    Raises:
        UserError: math-verify is missing, or its process does not start.
    """

    def __init__(self, limit_s: float = 5.0, start_limit_s: float = 300.0) -> None:
        self.limit_s = limit_s
        self.start_limit_s = start_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the process."""
        return type(self), (self.limit_s, self.start_limit_s)

    def __deepcopy__(self, memo: dict[int, Any]) -> MathEquality:
        """Itself: it keeps nothing of a question, and a process takes seconds to start."""
        return self

    def __call__(self, text: str, gold: str) -> Verdict:
        """Compare.

        Args:
            text: of an answer; the last boxed, dollared or plain expression counts.
            gold: the truth, LaTeX with or without dollars.
        """
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"text": text, "gold": gold}).encode() + b"\n")
                process.stdin.flush()
                found = _line(process, self.limit_s)
            except BrokenPipeError:
                found = None
            if found is None:
                self.close()
                return Verdict.UNREADABLE
        if not found["gold"]:
            return Verdict.BAD_TRUTH
        if not found["said"]:
            return Verdict.UNREADABLE
        return Verdict.EQUAL if found["equal"] else Verdict.DIFFERENT

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        eval_package("math_verify", "maths equality")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vlmkit.evaluation.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        weakref.finalize(self, _end, self._process)
        if _line(self._process, self.start_limit_s) != "ready":
            self.close()
            raise UserError(
                "the process that compares mathematics did not start; run "
                "python -m vlmkit.evaluation.math_worker to see why"
            )
        return self._process


def _line(process: subprocess.Popen[bytes], limit_s: float) -> Any:
    """The next line as JSON, or None where the process ended or the time is over."""
    assert process.stdout is not None
    read, end = b"", time.monotonic() + limit_s
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while not read.endswith(b"\n"):
            if not ready.select(max(0.0, end - time.monotonic())):
                return None
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                return None
            read += chunk
    return json.loads(read)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
