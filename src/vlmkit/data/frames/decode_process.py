"""Videos decoded in a process of their own, which is killed if it hangs."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.auto import open_auto
from vlmkit.data.frames.base import FrameReader, OpenReader
from vlmkit.data.frames.container_reader import source_of
from vlmkit.data.frames.decode_child import Child, DiedError, HungError
from vlmkit.data.frames.sequence_reader import FrameSequenceReader
from vlmkit.data.media import FrameSequence, VideoRef
from vlmkit.errors import DataError, MediaError, Reason

_START_LIMIT_S = 120.0  # for the process to start and import the reader, on a busy machine
_GIB = 1 << 30
_PIXELS_AT_ONCE = 16 * 1920 * 1080  # what `time_limit_s` is for


class Guarded:
    """Opens videos with a reader that runs in a child process, and ends that process where it hangs or dies.

    decord and FFmpeg are native code: on a damaged file they can loop for ever without letting Python run,
    or take the whole process down. Here they take down their own, and the caller gets a `MediaError`:

    | what happens | code | the next open of that video |
    |---|---|---|
    | a request takes longer than its limit | `timeout` | `quarantined`, at once |
    | the process dies | `decoder_died` | tried again; after the second death `quarantined` |
    | it needs more than its memory | `too_large`, if a fresh process does not help | tried again |

    An instance has one child, started at the first use and used for all videos, so that a loader worker
    has its own; forking, pickling and copying are safe. It ends with its parent, even a killed one.
    Threads take turns. Lists of frames need no decoder and are opened here. POSIX only.

    Opening a file and reading 16 frames takes 1.02 to 1.18 times as long as in this process (measured in
    turn, decord and PyAV, 320x180 and 1280x720; the pipe moves 2.5 GB/s); the first use 0.3 s more.

    Args:
        reader: opens a video in the child: a reader class, a function or a `functools.partial` of one.
            It is pickled, so it lives in a module, not in a notebook; files that it writes may have 256 MiB.
        time_limit_s: wall-clock limit of a request: opening a file of up to 1 GiB, or reading up to 16
            frames of 1920x1080. The limit of more bytes or more pixels is in proportion.
        memory_limit_gib: address space of the child; None leaves it unlimited.
        quarantine: names of videos (a file's path) that are never opened.

    Raises:
        ValueError: a limit is not positive, or the reader cannot be pickled.
    """

    def __init__(
        self,
        reader: OpenReader = open_auto,
        time_limit_s: float = 60.0,
        memory_limit_gib: float | None = None,
        quarantine: Collection[str] = (),
    ) -> None:
        if not time_limit_s > 0 or (memory_limit_gib is not None and not memory_limit_gib > 0):
            raise ValueError(
                f"time_limit_s is {time_limit_s} and memory_limit_gib is {memory_limit_gib}; "
                "set them above 0"
            )
        if isinstance(
            reader, partial
        ):  # Hydra has its own kind, and the child need not import Hydra
            reader = partial(reader.func, *reader.args, **reader.keywords)
        try:
            self._pickled = pickle.dumps(reader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{reader} cannot be sent to another process ({error}); define it in a module"
            ) from error
        self.reader = reader
        self.time_limit_s = time_limit_s
        self.memory_limit_gib = memory_limit_gib
        self.quarantine = set(quarantine)
        self._deaths: Counter[str] = Counter()
        self._child: Child | None = None
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def __call__(self, video: VideoRef) -> FrameReader:
        """Open `video` in the child.

        Raises:
            MediaError: as the reader, or see above; names the video.
            ImportError: what the reader needs is not installed.
            RuntimeError: a mistake in the reader, with the child's traceback; or no child can be started.
        """
        if isinstance(video, FrameSequence):
            return FrameSequenceReader(video)
        return _GuardedReader(self, video)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the child: a copy starts its own."""
        arguments = (self.reader, self.time_limit_s, self.memory_limit_gib, self.quarantine)
        return type(self), arguments

    def close(self) -> None:
        """End the child; the next use starts another."""
        if self._child is not None and self._pid == os.getpid():
            self._child.end()
        self._child = None

    def run(self, reader: _GuardedReader, indices: list[int] | None) -> NDArray[np.uint8]:
        """Open the video of `reader` if the child has not, and get frames if any are asked for."""
        self._notice_fork()
        with self._lock:
            while True:
                is_open = self._child is not None and reader.opened_by is self._child
                source = None if is_open else self._source(reader.video)
                child = self._running()
                try:
                    if source is not None:
                        self._open(child, reader, source)
                    return self._get(child, reader, indices)
                except _ClosedError:
                    reader.opened_by = None
                except MemoryError as error:
                    self.close()
                    if child.num_opened < 2:  # it had this video alone
                        limit = f"{self.memory_limit_gib} GiB" if self.memory_limit_gib else "all"
                        raise MediaError(
                            f"video {reader.video.name}: decoding needs more memory than {limit}",
                            Reason.TOO_LARGE,
                        ) from error

    def _source(self, video: VideoRef) -> Path | bytes:
        """What the child is to open, if it may."""
        if video.name in self.quarantine:
            raise MediaError(
                f"video {video.name}: left out, as decoding it hung or died before",
                Reason.QUARANTINED,
            )
        return source_of(video)

    def _open(self, child: Child, reader: _GuardedReader, source: Path | bytes) -> None:
        number = next(child.numbers)
        child.num_opened += 1
        if isinstance(source, bytes):
            path, payload, num_bytes = None, source, len(source)
        else:
            path, payload, num_bytes = os.path.abspath(source), b"", source.stat().st_size
        name = reader.video.name
        reply, content = self._ask(
            child,
            name,
            {"ask": "open", "number": number, "name": name, "path": path},
            payload,
            self.time_limit_s * max(1.0, num_bytes / _GIB),
        )
        reader.opened(child, number, reply, content.view(np.float64))

    def _get(
        self, child: Child, reader: _GuardedReader, indices: list[int] | None
    ) -> NDArray[np.uint8]:
        shape = (len(indices or ()), *reader.size, 3)
        if not indices:
            return np.empty(shape, dtype=np.uint8)
        pixels = len(indices) * reader.size[0] * reader.size[1]
        _, content = self._ask(
            child,
            reader.video.name,
            {"ask": "get", "number": reader.number, "indices": indices},
            b"",
            self.time_limit_s * max(1.0, pixels / _PIXELS_AT_ONCE),
            expected=3 * pixels,
        )
        return content.reshape(shape)

    def _ask(
        self,
        child: Child,
        name: str,
        request: dict[str, Any],
        payload: bytes,
        limit_s: float,
        expected: int | None = None,
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Exchange messages with the child; whatever goes wrong with it becomes an error of the video."""
        try:
            reply, content = child.ask(request, payload, limit_s, expected)
        except HungError as error:
            self.close()
            self.quarantine.add(name)
            raise MediaError(
                f"video {name}: decoding took longer than {limit_s:g} s and was ended",
                Reason.TIMEOUT,
            ) from error
        except DiedError as error:
            self.close()
            self._deaths[name] += 1
            if self._deaths[name] > 1:
                self.quarantine.add(name)
            raise MediaError(
                f"video {name}: the decoding process died ({error})", Reason.DECODER_DIED
            ) from error
        except BaseException:  # Ctrl-C: half a message is under way
            self.close()
            raise
        for logger, level, message in reply["logs"]:
            logging.getLogger(logger).log(level, "%s", message)
        if "error" in reply:
            _raise(reply)
        return reply, content

    def _running(self) -> Child:
        if self._child is None:
            limit = int(self.memory_limit_gib * _GIB) if self.memory_limit_gib else None
            self._child = Child()
            try:
                request = {"ask": "start", "memory_limit": limit}
                reply, _ = self._child.ask(request, self._pickled, _START_LIMIT_S)
            except (HungError, DiedError) as error:
                self.close()
                raise RuntimeError(f"the decoding process does not start: {error}") from error
            except BaseException:
                self.close()
                raise
            if "error" in reply:
                self.close()
                _raise(reply)
        return self._child

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():  # the child, and the lock, are the parent's
            if self._child is not None:
                self._child.abandon()
            self._child, self._lock, self._pid = None, threading.RLock(), os.getpid()


class _ClosedError(Exception):
    """The child has closed the video to make room for others."""


class _GuardedReader(FrameReader):
    """An opened video whose frames another process decodes."""

    def __init__(self, guard: Guarded, video: VideoRef) -> None:
        self.video = video
        self.opened_by: Child | None = None
        self.number = -1
        self._size = (0, 0)
        self._duration_s = 0.0
        self._guard = guard
        self._closing: weakref.finalize[Any, Any] | None = None
        guard.run(self, None)

    @property
    def size(self) -> tuple[int, int]:
        """See `FrameReader.size`."""
        return self._size

    @property
    def duration_s(self) -> float:
        """See `FrameReader.duration_s`."""
        return self._duration_s

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        return self._guard.run(self, [int(index) for index in indices])

    def opened(
        self, child: Child, number: int, reply: dict[str, Any], pts_s: NDArray[np.float64]
    ) -> None:
        """Take over what the child said about the video, now or again after a restart."""
        height, width = reply["size"]
        is_again = self.number >= 0
        if is_again and ((height, width) != self._size or len(pts_s) != self.num_frames):
            raise MediaError(f"video {self.video.name}: it changed while it was read")
        self.pts_s, self._size, self._duration_s = pts_s, (height, width), reply["duration_s"]
        self.opened_by, self.number = child, number
        self._closing = weakref.finalize(self, child.closed.append, number)
        self._closing.atexit = False


def _raise(reply: dict[str, Any]) -> NoReturn:
    """Raise here what was raised in the child."""
    kind, message = reply["error"], reply.get("message", "")
    if kind == "closed":
        raise _ClosedError
    if kind == "data":
        names = {f"{known.__module__}.{known.__qualname__}": known for known in _data_errors()}
        raise names.get(reply["type"], MediaError)(message, Reason(reply["code"]))
    if kind == "memory":
        raise MemoryError(message)
    if kind == "import":
        raise ImportError(message)
    raise RuntimeError(f"{message}\n\nIn the decoding process:\n{reply['traceback']}")


def _data_errors(known: type[DataError] = DataError) -> Iterator[type[DataError]]:
    yield known
    for special in known.__subclasses__():
        yield from _data_errors(special)
