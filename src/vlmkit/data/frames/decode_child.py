"""The near side of a decoding process: starting it, talking to it within limits of time, ending it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.decode_server import LENGTHS

_MOST_HEADER = 16 << 20  # bytes
_PIPE_BYTES = 1 << 20


class HungError(Exception):
    """No answer within the limit."""


class DiedError(Exception):
    """No answer, and none to come; says how it ended."""


class Child:
    """A running `decode_server`.

    A request that raises leaves half a message under way: the child must then be ended.

    Attributes:
        numbers: names for videos to open.
        closed: names of videos that the child may close; it is told with the next request.
        num_opened: videos opened so far.
    """

    def __init__(self) -> None:
        self.numbers = count()
        self.closed: list[int] = []
        self.num_opened = 0
        self._chatter = tempfile.TemporaryFile()  # noqa: SIM115 - what decoders print; lives as long
        paths = [path or os.getcwd() for path in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vlmkit.data.frames.decode_server", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._chatter,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()
        for pipe in (self._requests, self._replies):
            os.set_blocking(pipe, False)
            _widen(pipe)
        self._ending = weakref.finalize(self, _end, self._process, self._chatter, os.getpid())

    def ask(
        self,
        request: dict[str, Any],
        payload: bytes,
        limit_s: float,
        expected: int | None = None,
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Send a request and wait for the answer.

        Args:
            request: as JSON.
            payload: raw bytes that go with it.
            limit_s: for all of it.
            expected: bytes that must come back, unless the answer is an error.

        Raises:
            HungError: it took too long.
            DiedError: the process is gone, or talks nonsense.
        """
        closed, self.closed[:] = self.closed[:], []
        deadline = time.monotonic() + limit_s
        text = json.dumps({**request, "closed": closed, "limit_s": limit_s}).encode()
        for part in (LENGTHS.pack(len(text), len(payload)), text, payload):
            self._write(memoryview(part), deadline)
        num_header, num_content = LENGTHS.unpack(self._read(LENGTHS.size, deadline).data)
        if num_header > _MOST_HEADER:
            raise DiedError("it talks nonsense")
        try:
            reply: dict[str, Any] = json.loads(bytes(self._read(num_header, deadline)))
            reply["logs"]
        except (ValueError, TypeError, KeyError) as error:
            raise DiedError("it talks nonsense") from error
        if expected is not None and num_content != (0 if "error" in reply else expected):
            raise DiedError(f"it answers with {num_content} bytes, not {expected}")
        return reply, self._read(num_content, deadline)

    def end(self) -> None:
        """Kill it, whatever it does."""
        self._ending()

    def abandon(self) -> None:
        """Forget a child that belongs to the process from which this one was forked."""
        self._process.returncode = 0  # not ours to wait for
        self._ending()

    def _write(self, view: memoryview, deadline: float) -> None:
        while view:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._requests, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._died() from error

    def _read(self, num_bytes: int, deadline: float) -> NDArray[np.uint8]:
        content = np.empty(num_bytes, dtype=np.uint8)
        view = content.data
        while view:
            self._wait(self._replies, select.POLLIN, deadline)
            try:
                count = os.readv(self._replies, [view])
            except BlockingIOError:
                continue
            if not count:
                raise self._died()
            view = view[count:]
        return content

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise HungError
            if poll.poll(1000 * min(left_s, 60.0)):
                return

    def _died(self) -> DiedError:
        """How it ended, with its last words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        status = self._process.returncode
        how = "it closed its pipes" if status is None else f"exit status {status}"
        if status is not None and status < 0:
            how = signal.Signals(-status).name
        words = os.pread(self._chatter.fileno(), 1 << 16, 0).decode(errors="replace")
        return DiedError(": ".join([how, *_telling(words.splitlines())]))


def _telling(lines: Sequence[str]) -> Sequence[str]:
    """The line of a decoder's last words that says most."""
    fatal = [line.strip() for line in lines if line.startswith("Fatal")]
    return (fatal or [line.strip() for line in lines if line.strip()])[-1:]


def _end(process: subprocess.Popen[bytes], chatter: IO[bytes], owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)  # a process that waits for a dead network disk cannot be killed at once
    for file in (process.stdin, process.stdout, chatter):
        if file is not None:
            file.close()


def _widen(pipe: int) -> None:
    """Room for more than 64 KiB: fewer turns between the two processes."""
    with suppress(AttributeError, OSError):  # Linux only; the system may allow less
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
