"""Readers that misbehave, for processes that are meant to survive them. Names of videos say how."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.reader import FrameReader
from vlmkit.data.media import VideoRef
from vlmkit.errors import MediaError, Reason, RecordError

SIZE = (6, 8)
logger = logging.getLogger(__name__)


def hang() -> None:
    """Sleep in native code without letting go of the interpreter, as decord does in its loops."""
    ctypes.PyDLL(None).sleep(10_000)


class Misbehaving(FrameReader):
    """Five frames; frame i is all i. Does what the video's name asks for, on opening or on reading."""

    def __init__(self, video: VideoRef) -> None:
        self.name = video.name
        self.pts_s = np.arange(5) / 2
        self._misbehave("open")

    @property
    def size(self) -> tuple[int, int]:
        return SIZE

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        self._misbehave("get")
        numbers = np.array(indices, dtype=np.uint8)
        frames = np.broadcast_to(numbers[:, None, None, None], (len(indices), *SIZE, 3))
        return frames[:, :4] if "wrong_shape" in self.name else frames

    def _misbehave(self, when: str) -> None:
        name = self.name if f"_on_{when}" in self.name else ""
        if "hang" in name:
            hang()
        if "slow" in name:
            time.sleep(0.5)
        if "die" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "crash" in name:
            ctypes.string_at(0)
        if "exit" in name:
            os._exit(3)
        if "hungry" in name:
            np.ones((64, 1 << 30), dtype=np.uint8)
        if "mistake" in name:
            raise KeyError("a mistake of the reader")
        if "refuse" in name:
            raise MediaError(f"video {self.name}: no clock", Reason.NO_CLOCK)
        if "bad_record" in name:
            raise RecordError("row 7 is odd")
        if "absent" in name:
            raise ImportError("run `pip install something`")
        if "warn" in name:
            logger.warning("reading %s with something else", self.name)
        if "chatter" in name:
            for _ in range(400):
                print("x" * 10_000)
                os.write(1, b"o" * 100_000)
                os.write(2, b"e" * 100_000)
                sys.stderr.write("e" * 10_000)


class HungryOnce(Misbehaving):
    """Memory runs out on the third video that a process opens."""

    opened = 0

    def __init__(self, video: VideoRef) -> None:
        super().__init__(video)
        type(self).opened += 1
        if type(self).opened == 3:
            raise MemoryError


class TorchIsHere(Misbehaving):
    """As many frames as heavy packages are imported, and one."""

    def __init__(self, video: VideoRef) -> None:
        super().__init__(video)
        heavy = {"torch", "torchvision", "hydra", "lightning", "transformers", "timm", "matplotlib"}
        logger.warning("imported: %s", sorted(heavy & set(sys.modules)))
