"""From the URL of a request to a picture or video. Nothing is ever fetched from the network."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlmkit.data.media import (
    ImageBlob,
    ImageFile,
    ImageRef,
    InMemory,
    VideoBlob,
    VideoFile,
    VideoRef,
    data_url,
)
from vlmkit.errors import ConfigError, MediaError, Reason


class MediaFiles:
    """Opens `data:` URLs, and `file://` URLs below chosen folders.

    What counts is where a path leads after all links: neither `..` nor a link leaves the folders.
    """

    def __init__(self, roots: Sequence[str | Path] = (), file_bytes: int | None = None) -> None:
        """Fix the folders.

        Args:
            roots: folders whose files may be named; none: no files.
            file_bytes: largest file.

        Raises:
            ConfigError: a folder does not exist.
        """
        self.roots = tuple(Path(root).expanduser().resolve() for root in roots)
        self.file_bytes = file_bytes
        for root in self.roots:
            if not root.is_dir():
                raise ConfigError(f"media_root: {root} is not a folder")

    def image(self, url: str, place: str) -> ImageRef:
        """The picture of a URL.

        Raises:
            MediaError: it may not be opened; names the place in the request.
        """
        found = self._found(url, place)
        return ImageFile(found) if isinstance(found, Path) else ImageBlob(found)

    def video(self, url: str, place: str) -> VideoRef:
        """The video of a URL.

        Raises:
            MediaError: as `image`.
        """
        found = self._found(url, place)
        return VideoFile(found) if isinstance(found, Path) else VideoBlob(found)

    def _found(self, url: str, place: str) -> Path | InMemory:
        if url[:5].lower() == "data:":
            content = data_url(url, place).content
            # a name of its own: videos that hang are remembered by name
            digest = hashlib.sha256(content).hexdigest()[:12]
            return InMemory(content, f"{place} ({digest})")
        if url[:7].lower() == "file://":
            return self._file(url, place)
        raise MediaError(
            f"{place}: {url[:100]!r} is neither a data: nor a file:// URL; nothing is fetched from the "
            "network, so send the content as data:<type>;base64,<content>",
            Reason.NETWORK_REFUSED,
        )

    def _file(self, url: str, place: str) -> Path:
        if not self.roots:
            raise MediaError(
                f"{place}: files may not be named on this server; send the content as a data: URL, or "
                "start it with media_root=<folder>"
            )
        try:
            parts = urlsplit(url)
            named = unquote(parts.path, errors="strict")
        except ValueError as error:
            raise MediaError(f"{place}: {url[:200]!r} is no URL ({error})") from error
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise MediaError(f"{place}: {url[:200]!r} names no file of this machine: file:///path")
        if not named.startswith("/") or "\0" in named:
            raise MediaError(f"{place}: {url[:200]!r} names no file: file:///path")
        try:
            path = Path(named).resolve()  # also of what does not exist
        except (OSError, RuntimeError):  # a ring of links
            path = Path("/")
        if not any(path.is_relative_to(root) for root in self.roots):
            raise MediaError(f"{place}: {named[:200]} is not below a folder that is allowed")
        try:
            found = os.stat(path)
        except OSError as error:
            raise MediaError(
                f"{place}: {named[:200]}: no such file", Reason.MISSING_FILE
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"{place}: {named[:200]} is not a file")
        if self.file_bytes is not None and found.st_size > self.file_bytes:
            raise MediaError(
                f"{place}: {named[:200]} has {found.st_size} bytes; at most {self.file_bytes} are opened",
                Reason.TOO_LARGE,
            )
        return path
