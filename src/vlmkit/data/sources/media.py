"""From what a row says about a picture or video to something that can be opened."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlmkit.data.media import (
    Blob,
    ImageBlob,
    ImageFile,
    ImageRef,
    InMemory,
    VideoBlob,
    VideoFile,
    VideoRef,
    data_url,
)
from vlmkit.data.sources.cache import cache_folder
from vlmkit.data.sources.download import Download
from vlmkit.data.sources.row import Node, is_blob
from vlmkit.errors import DataError, MediaError, Reason

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_REMOTE = ("http", "https")


@dataclass(frozen=True)
class Media:
    """Where pictures and videos are. Nothing is opened before it is needed.

    A row names one as a path, a `file://`, `data:`, `http://` or `https://` URL, as bytes, as
    `{"bytes": ..., "path": ...}` (the Image feature of the `datasets` library), or as
    `{"url": ...}` or `{"path": ...}`.

    With a `root`, nothing outside it is opened, whether a row says `..`, an absolute path or
    `file://`; links inside it are followed. Without, relative paths count from the working directory
    and any file may be named.

    Args:
        root: folder from which relative paths count.
        allow_network: fetch `http://` and `https://` URLs; else they are refused.
        cache: folder for what is fetched; None is below the user's cache folder.
        timeout_s: longest time to fetch a file.
        max_bytes: largest file that is fetched.
        members: what names in a row stand for first, such as the other files of its sample.
    """

    root: str | Path | None = None
    allow_network: bool = False
    cache: str | Path | None = None
    timeout_s: float = 30.0
    max_bytes: int = 200_000_000
    members: Mapping[str, Blob] = field(default_factory=dict)

    def with_members(self, members: Mapping[str, Blob]) -> Media:
        """The same with names that stand for files of a sample."""
        return replace(self, members=members)

    def image(self, node: Node) -> ImageRef:
        """The picture that a value names.

        Raises:
            DataError: it names none, or one that may not be opened; says where and why.
        """
        found = self._found(node)
        return ImageFile(found) if isinstance(found, Path) else ImageBlob(found)

    def video(self, node: Node) -> VideoRef:
        """The video file that a value names.

        Raises:
            DataError: as `image`.
        """
        found = self._found(node)
        return VideoFile(found) if isinstance(found, Path) else VideoBlob(found)

    def _found(self, node: Node) -> Path | Blob:
        value = node.value
        if isinstance(value, Path):  # only tables give these; rows of files hold text
            return value
        if isinstance(value, bytes | bytearray):
            return InMemory(bytes(value), node.name)
        if is_blob(value):
            blob: Blob = value
            return blob
        if isinstance(value, Mapping):
            return self._of_mapping(node)
        text = node.text()
        if not text.strip() or "\0" in text:
            raise node.error("it names no file", "give a path or a URL")
        if text in self.members:
            return self.members[text]
        if text.startswith("data:"):
            return data_url(text, node.name)
        if scheme := _SCHEME.match(text):
            return self._of_url(scheme[1].lower(), node, text)
        return self._below_root(text, node)

    def _of_mapping(self, node: Node) -> Path | Blob:
        content = node["bytes"].value
        if isinstance(content, bytes | bytearray):
            path = node["path"].value
            name = f"{node.name} ({path})" if isinstance(path, str) else node.name
            return InMemory(bytes(content), name)
        if content is not None:
            raise node["bytes"].error("it is not bytes", "store the file as bytes")
        named = node.first_of("url", "path")
        if isinstance(named.value, Mapping):
            raise named.error("it is an object", "give a path or a URL")
        return self._found(named)

    def _of_url(self, scheme: str, node: Node, url: str) -> Path | Blob:
        if scheme == "file":
            try:
                parts = urlsplit(url)
            except ValueError as error:
                raise node.error(f"{url[:200]} is no URL ({error})", "mend it") from error
            path = unquote(parts.path)
            if parts.netloc not in ("", "localhost") or not path or "\0" in path:
                raise node.error(f"{url[:200]} names no file of this machine", "write file:///path")
            return self._below_root(path, node)
        if scheme not in _REMOTE:
            raise DataError(
                f"{node.name}: {scheme}:// cannot be opened; copy the files to a disk, or give http URLs",
                Reason.UNREADABLE,
            )
        if not self.allow_network:
            raise DataError(
                f"{node.name}: {url[:200]} is on the network, which is not used; set allow_network: true "
                "in the source's media to fetch it, or give files",
                Reason.NETWORK_REFUSED,
            )
        folder = cache_folder("downloads") if self.cache is None else Path(self.cache)
        return Download(url, folder, self.timeout_s, self.max_bytes)

    def _below_root(self, text: str, node: Node) -> Path:
        if self.root is None:
            return Path(text)
        root = os.path.abspath(os.path.expanduser(self.root))
        path = os.path.normpath(os.path.join(root, text))
        if os.path.commonpath([root, path]) != root:
            raise MediaError(
                f"{node.name}: {text[:200]} lies outside the media root {self.root}; move the files below "
                "it, or leave the root out to allow any path"
            )
        return Path(path)
