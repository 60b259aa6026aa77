"""What a question shows: pictures, a video, frames, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vlmkit.data.media import FrameSequence, ImageFile, VideoFile, VideoRef
from vlmkit.data.record import ImagePart, Part, VideoPart
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Node, Row
from vlmkit.evaluation.asks.values import at, fill, listed, needed, number_of, text_of

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class Shown(Protocol):
    """Finds the media of a row."""

    def __call__(self, row: Row) -> list[Part]:
        """In order.

        Raises:
            DataError: a row does not have what it should.
        """
        ...


@dataclass(frozen=True)
class Nothing:
    """Questions in words only."""

    def __call__(self, row: Row) -> list[Part]:
        """See `Shown`."""
        return []


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of some columns; each holds one, or a list of them.

    Attributes:
        columns: all that are filled, in order.
        or_else: column with paths, looked at where the others are empty: what VLMEvalKit writes for
            files that it has taken the pictures out of.
        path: how a name becomes a path: `"images/{}.jpg"`.
        optional: rows without pictures are questions, too.
        media: opens them.
    """

    columns: Sequence[str] = ("image",)
    or_else: str | None = "image_path"
    path: str = "{}"
    optional: bool = False
    media: Media = field(default_factory=Media)

    def __call__(self, row: Row) -> list[Part]:
        """See `Shown`."""
        found = [node for column in self.columns for node in listed(at(row, column))]
        found = [node for node in found if node.value not in (None, "")]
        if not found and self.or_else is not None:
            found = listed(at(row, self.or_else))
        if not found and not self.optional:
            raise row.error(
                f"there is no picture in {', '.join(self.columns)}",
                "is it the file its YAML names?",
            )
        return [ImagePart(self.media.image(self._named(node))) for node in found]

    def _named(self, node: Node) -> Node:
        value = node.value
        return node.replaced(self.path.format(value)) if isinstance(value, str) else node


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video, or a stretch of one; a folder is its frames.

    Attributes:
        path: of the file, from columns: `"{videoID}.mp4"`; `{folder}` comes from `folders`.
        folders: by the value of the column `folder_by`.
        folder_by: a column.
        start: column with the second at which the stretch begins; empty: at the beginning.
        end: column with the second at which it ends; empty: at the end.
        fps: at which the frames of folders were taken.
        media: opens it.
    """

    path: str = "{video}"
    folders: Mapping[str, str] = field(default_factory=dict)
    folder_by: str = "file"
    start: str | None = None
    end: str | None = None
    fps: float | None = None
    media: Media = field(default_factory=Media)

    def __call__(self, row: Row) -> list[Part]:
        """See `Shown`."""
        folder = {}
        if self.folders:
            node = at(row, self.folder_by)
            if node.value not in self.folders:
                raise node.error(f"{node.value!r} has no folder", "add it to `folders` in the YAML")
            folder = {"folder": self.folders[node.value]}
        path = Node(fill(self.path, row, folder), row, "video")
        video = self._opened(self.media.video(path))
        return [VideoPart(video, self._time(row, self.start), self._time(row, self.end))]

    def _opened(self, video: VideoRef) -> VideoRef:
        if self.fps is None or not isinstance(video, VideoFile) or not video.path.is_dir():
            return video
        return FrameSequence.at_fps(
            tuple(ImageFile(path) for path in _pictures_in(video.path)), self.fps, video.name
        )

    @staticmethod
    def _time(row: Row, column: str | None) -> float | None:
        node = at(row, column) if column is not None else None
        return None if node is None or node.value in (None, "") else number_of(node)


@dataclass(frozen=True, kw_only=True)
class Together:
    """First this, then that: a video and a picture."""

    each: Sequence[Shown]

    def __call__(self, row: Row) -> list[Part]:
        """See `Shown`."""
        return [part for shown in self.each for part in shown(row)]


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How questions are named, grouped and sorted.

    Attributes:
        key: columns whose values together name a question; none: the number of the row.
        categories: column by category; rows that do not have it are in none.
        group: columns of what several questions are about, such as a video.
    """

    key: Sequence[str] = ("index",)
    categories: Mapping[str, str] = field(default_factory=dict)
    group: Sequence[str] = ()

    def key_of(self, row: Row) -> str:
        """See above."""
        return "/".join(needed(at(row, column)) for column in self.key) or f"row{row.key}"

    def group_of(self, row: Row) -> str | None:
        """See above; None: the question is alone."""
        return "/".join(needed(at(row, column)) for column in self.group) or None

    def categories_of(self, row: Row) -> dict[str, str]:
        """Values by category."""
        values = {name: text_of(at(row, column)) for name, column in self.categories.items()}
        return {name: value for name, value in values.items() if value is not None}
