"""Samples of tar shards: a picture and its caption, or JSON with the files it speaks of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit.data.media import Blob
from vlmkit.data.record import Conversation
from vlmkit.data.sources.captions import Captions
from vlmkit.data.sources.image_folder import PICTURES
from vlmkit.data.sources.jsonl import parse_object
from vlmkit.data.sources.layout import Layout
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Row, blobs_of
from vlmkit.data.sources.tar import KEY
from vlmkit.errors import RecordError, listed

VIDEOS = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)


class WebDatasetSample:
    """Makes one row of the files of a sample, and hands it to a layout.

    `.json` gives the columns and `.txt` the column `text`. Names in the columns that are those of files
    of the sample (`jpg`, `0.jpg`, `key.0.jpg`) stand for these. Pictures and videos that no name stands
    for fill the columns `image` and `video`, in the order of the shard, in place of what the JSON
    says there: that is where the files once were. Each file is also a column under its extension.

    Args:
        layout: reads the row; captions by default.
        json: extension of the file with columns.
        text_extensions: extensions of files that are the caption.
        text: column for the caption.
        image: column for pictures; a single one is no list.
        video: column for videos.
    """

    def __init__(
        self,
        layout: Layout | None = None,
        json: str = "json",
        text_extensions: Sequence[str] = ("txt", "caption"),
        text: str = "caption",
        image: str = "image",
        video: str = "video",
    ) -> None:
        self.layout = Captions() if layout is None else layout
        self.json, self.text_extensions, self.text = json, tuple(text_extensions), text
        self.image, self.video = image, video

    def __call__(self, row: Row, media: Media) -> Conversation:
        """See `Layout`."""
        key = str(row.mapping().get(KEY, ""))
        blobs = dict(blobs_of(row.mapping()))
        values: dict[str, Any] = {"key": key, **row.mapping()}
        values.pop(KEY, None)
        if self.json in blobs:
            del values[self.json]
            values |= parse_object(blobs.pop(self.json).read(), lambda: row.origin)
        texts = [extension for extension in self.text_extensions if extension in blobs]
        if len(texts) > 1:
            raise row.error(f"it has {listed(texts)}", "they mean the same: keep one")
        if texts:
            values[self.text] = _decoded(blobs.pop(texts[0]), row)
        members = _names(blobs, key)
        try:
            named = _mentioned(values, members)
        except RecursionError as error:
            raise row.error("it is nested too deeply", "make it flatter") from error
        self._fill(values, blobs, named)
        return self.layout(Row(values, row.origin, row.key), media.with_members(members))

    def _fill(self, values: dict[str, Any], blobs: dict[str, Blob], named: set[int]) -> None:
        """Give pictures and videos that nothing names to their columns."""
        for column, suffixes in ((self.image, PICTURES), (self.video, VIDEOS)):
            held = [
                blob
                for extension, blob in blobs.items()
                if "." + extension.rpartition(".")[2] in suffixes and id(blob) not in named
            ]
            if held:
                values[column] = held[0] if len(held) == 1 else held


def _names(blobs: dict[str, Blob], key: str) -> dict[str, Blob]:
    """What the files of a sample may be called."""
    base = key.rpartition("/")[2]
    names: dict[str, Blob] = {}
    for extension, blob in blobs.items():
        names |= dict.fromkeys((extension, f"{base}.{extension}", f"{key}.{extension}"), blob)
    return names


def _mentioned(value: Any, members: Mapping[str, Blob]) -> set[int]:
    """Files whose names stand somewhere in the columns."""
    if isinstance(value, str):
        return {id(members[value])} if value in members else set()
    inner = value.values() if isinstance(value, Mapping) else value
    if not isinstance(inner, list | tuple) and inner is value:
        return set()
    return set().union(*(_mentioned(item, members) for item in inner))


def _decoded(blob: Blob, row: Row) -> str:
    try:
        return blob.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{row.origin}: byte {error.start} of {blob.name} is not UTF-8; save it as UTF-8"
        ) from error
