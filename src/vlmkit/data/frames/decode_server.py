"""The far side of `decode_process.Guarded`: opens and reads videos for the process that started it.

`python -m vlmkit.data.frames.decode_server` reads requests from its standard input and answers on its
standard output, one at a time. A message is two numbers of 8 bytes, the lengths of what follows: a JSON
object, and raw bytes (a file, times, pixels). What answers hold is read as plain data on the near side,
never unpickled or executed, for a damaged file may have taken this process over.

It ends with its parent, however that ends: its input ends, or its parent's number changes, or, where
native code hangs, an alarm that needs no Python goes off.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import pickle
import resource
import select
import signal
import struct
import sys
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.child_signals import write_stacks_on_signal
from vlmkit.data.frames.base import FrameReader, OpenReader
from vlmkit.data.media import InMemory, VideoBlob, VideoFile
from vlmkit.errors import DataError

LENGTHS = struct.Struct("<QQ")
"""Of the JSON object and of the raw bytes of a message."""

GRACE_S = 5.0
"""How long after its limit a request that still runs ends this process, had the parent not killed it."""

_MOST_OPEN = 8  # videos; the parent opens again what is closed
_MOST_CHATTER = 256 << 20  # bytes of what decoders print during a request, or of any file
_PATIENCE_S = 1.0  # between looks whether the parent is still there


class _ParentGoneError(Exception):
    """Nobody is left to answer."""


class _Pipes:
    """Both directions of the connection to the parent, moved away from where libraries print."""

    def __init__(self, parent: int) -> None:
        self._requests, self._replies = os.dup(0), os.dup(1)
        os.set_blocking(self._replies, False)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        self._parent = parent

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        num_header, num_payload = LENGTHS.unpack(self._read(LENGTHS.size))
        header = json.loads(self._read(num_header))
        return header, self._read(num_payload)

    def send(self, header: dict[str, Any], payload: memoryview) -> None:
        text = json.dumps(header).encode()
        for part in (LENGTHS.pack(len(text), payload.nbytes), text, payload):
            self._write(memoryview(part))

    def _read(self, num_bytes: int) -> bytearray:
        content = bytearray(num_bytes)
        view = memoryview(content)
        while view:
            self._wait(self._requests, select.POLLIN)
            count = os.readv(self._requests, [view])
            if not count:
                raise _ParentGoneError
            view = view[count:]
        return content

    def _write(self, view: memoryview) -> None:
        while view:
            self._wait(self._replies, select.POLLOUT)
            try:
                view = view[os.write(self._replies, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _ParentGoneError from None

    def _wait(self, file: int, event: int) -> None:
        poll = select.poll()
        poll.register(file, event)
        while not poll.poll(1000 * _PATIENCE_S):
            # A pipe does not end while another process holds a copy of the parent's end.
            if os.getppid() != self._parent:
                raise _ParentGoneError


class _Logs(logging.Handler):
    """Keeps what readers log, for the parent to say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.kept) < 100:
            self.kept.append((record.name, record.levelno, record.getMessage()))


class _Server:
    """The open videos, and what can be asked of them."""

    def __init__(self) -> None:
        self._open_reader: OpenReader
        self._readers: OrderedDict[int, FrameReader] = OrderedDict()

    def answer(self, ask: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], memoryview]:
        for number in ask.get("closed", ()):
            self._readers.pop(number, None)
        kind = ask["ask"]
        if kind == "start":
            return self._start(ask, payload)
        if kind == "open":
            return self._open(ask, payload)
        assert kind == "get", kind
        return self._get(ask)

    def _start(self, ask: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], memoryview]:
        if ask["memory_limit"]:
            resource.setrlimit(resource.RLIMIT_AS, (ask["memory_limit"], ask["memory_limit"]))
        self._open_reader = pickle.loads(payload)
        return {}, memoryview(b"")

    def _open(self, ask: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], memoryview]:
        path, name = ask["path"], ask["name"]
        video = VideoBlob(InMemory(bytes(payload), name)) if path is None else VideoFile(Path(path))
        reader = self._open_reader(video)
        pts_s = np.ascontiguousarray(reader.pts_s, dtype=np.float64)
        reply = {
            "duration_s": float(reader.duration_s),
            "size": [int(side) for side in reader.size],
        }
        self._readers[ask["number"]] = reader
        if len(self._readers) > _MOST_OPEN:
            self._readers.popitem(last=False)
        return reply, pts_s.data.cast("B")

    def _get(self, ask: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
        reader = self._readers.get(ask["number"])
        if reader is None:
            return {"error": "closed"}, memoryview(b"")
        self._readers.move_to_end(ask["number"])
        frames = np.ascontiguousarray(reader.get(ask["indices"]))
        expected = (len(ask["indices"]), *reader.size, 3)
        if frames.shape != expected or frames.dtype != np.uint8:
            raise TypeError(f"get returned {frames.shape} {frames.dtype}, not {expected} uint8")
        return {}, frames.reshape(-1).data


def _refusal(error: BaseException) -> dict[str, Any]:
    """An error as plain data; what is no error of the data comes with its traceback."""
    if isinstance(error, DataError):
        return {
            "error": "data",
            "type": f"{type(error).__module__}.{type(error).__qualname__}",
            "message": str(error),
            "code": str(error.code),
        }
    kind = {MemoryError: "memory", ImportError: "import"}
    name = next((name for known, name in kind.items() if isinstance(error, known)), "bug")
    return {"error": name, "message": str(error), "traceback": traceback.format_exc()}


def main(parent: int) -> None:
    """Answer until the process `parent` is gone."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_CHATTER, _MOST_CHATTER))
    faulthandler.enable()
    write_stacks_on_signal()
    for ignored in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)  # a scheduler's; the parent ends this process
    logs = _Logs()
    logging.getLogger().addHandler(logs)
    logging.captureWarnings(True)
    pipes, server = _Pipes(parent), _Server()
    while True:
        try:
            ask, payload = pipes.receive()
        except _ParentGoneError:
            return
        _forget_chatter()
        signal.setitimer(signal.ITIMER_REAL, min(ask["limit_s"], 1e7) + GRACE_S)
        try:
            reply, content = server.answer(ask, payload)
        except Exception as error:
            reply, content = _refusal(error), memoryview(b"")
        signal.setitimer(signal.ITIMER_REAL, 0)
        del payload
        try:
            pipes.send({**reply, "logs": logs.kept}, content)
        except _ParentGoneError:
            return
        logs.kept.clear()


def _forget_chatter() -> None:
    """Empty the file that the parent made of the standard error output, the place for last words."""
    try:
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
    except OSError:
        pass  # started by hand, at a terminal


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # no destructors of decoders
