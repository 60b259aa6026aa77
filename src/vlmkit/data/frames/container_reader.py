"""What readers of video files have in common."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any, ClassVar

from vlmkit.data.frames.base import FrameReader
from vlmkit.data.frames.sequence_reader import FrameSequenceReader
from vlmkit.data.image_decode import MACHINE_ERRORS
from vlmkit.data.media import FrameSequence, VideoFile, VideoRef
from vlmkit.errors import MediaError, Reason

_HEAD_BYTES = 1 << 16
_PLAYLISTS = (b"#EXTM3U", b"<MPD", b"<CompositionPlaylist", b"ffconcat", b"c=IN IP")


class ContainerReader(FrameReader):
    """A video file, on disk or in bytes, opened by one of the decoders.

    Given a list of frames, which needs no decoder, every subclass makes a `FrameSequenceReader` instead.
    """

    decoder: ClassVar[str]
    """The name in messages."""

    def __new__(cls, video: VideoRef, *_: Any, **__: Any) -> Any:
        """Choose by what the video is."""
        if isinstance(video, FrameSequence):
            return FrameSequenceReader(video)
        return super().__new__(cls)

    def __init__(self, video: VideoRef) -> None:
        """Find the file, or fetch its bytes.

        Raises:
            MediaError: there is nothing to decode, or text.
        """
        self._name = video.name
        self._size: tuple[int, int] | None = None
        self._source = source_of(video)
        self._head = self._source if isinstance(self._source, bytes) else _head(self._source)
        self._head = self._head[:_HEAD_BYTES]
        self._refuse_text()

    @property
    def size(self) -> tuple[int, int]:
        """See `FrameReader.size`."""
        if self._size is None:
            self._size = super().size
        return self._size

    def _refuse_text(self) -> None:
        """FFmpeg opens playlists too, and fetches what they name from the network; decord lets it do so."""
        # Every container has zero bytes, and a text ends at the first as FFmpeg reads it.
        text, zero, _ = self._head.partition(b"\0")
        if any(mark in text for mark in _PLAYLISTS):
            raise MediaError(
                f"video {self._name}: it is a playlist or a stream's description, not a video",
                Reason.NETWORK_REFUSED,
            )
        if not zero:
            raise MediaError(f"video {self._name}: cannot be decoded (it is text)")

    def _error(self, reason: object, code: Reason = Reason.UNREADABLE) -> MediaError:
        text = str(reason).strip().split("\n", maxsplit=1)[0] or type(reason).__name__
        return MediaError(f"video {self._name}: {self.decoder} cannot read it ({text})", code)


def source_of(video: VideoRef) -> Path | bytes:
    """Where a decoder finds the video: a path to a file that is there and not empty, or its bytes.

    Raises:
        MediaError: there is nothing to decode.
    """
    assert not isinstance(video, FrameSequence)
    if not isinstance(video, VideoFile):
        content = video.blob.read()
        if not content:
            raise MediaError(f"video {video.name}: it is empty", Reason.NO_FRAMES)
        return content
    try:
        num_bytes = video.path.stat().st_size
        is_file = video.path.is_file()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MediaError(f"video {video.name}: file not found", Reason.MISSING_FILE) from error
    except (OSError, ValueError) as error:  # an unusable name
        raise MediaError(f"video {video.name}: cannot be opened ({error})") from error
    if not is_file:
        raise MediaError(f"video {video.name}: not a file")
    if not num_bytes:
        raise MediaError(f"video {video.name}: file is empty", Reason.NO_FRAMES)
    return video.path


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        raise MediaError(f"video {path}: cannot be opened ({error})") from error


def openable(source: Path | bytes) -> str | io.BytesIO:
    """A source as most decoders take it: a path, or something to read from."""
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def import_decoder(name: str) -> Any:
    """Import an optional package.

    Raises:
        ImportError: it is missing; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # a shared library is missing
        package = name.partition(".")[0]
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise ImportError(
            f"reading videos needs {package}: run `pip install {package}` ({reason})"
        ) from error
