"""The picture set that ships with vlmkit: emoji by four artists, with names, tags and groups.

Real drawings by real artists, no natural scenes: a score on them says nothing about photographs. The
shard is built by `python -m vlmkit.assets.build`; licences stand beside it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast
from zlib import crc32

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vlmkit.assets import asset_path

ARTISTS = ("noto", "fluent", "twemoji", "openmoji")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji, whoever drew it."""

    hexcode: str
    label_en: str
    label_zh: str
    tags_en: tuple[str, ...]
    group: str


class EmojiSet:
    """A part of the set: some concepts, drawn by some artists.

    A concept is held out by a hash of its code point, so that all its drawings are on one side.

    Args:
        concepts: those to train on, those held out, or all.
        artists: whose drawings.
        held_out_share: share of concepts kept from training.
    """

    def __init__(
        self,
        concepts: Literal["train", "held_out", "all"] = "all",
        artists: Sequence[str] = ARTISTS,
        held_out_share: float = 0.15,
    ) -> None:
        if unknown := set(artists) - set(ARTISTS):
            raise ValueError(
                f"artists {sorted(unknown)} are not in the set; it has {list(ARTISTS)}"
            )
        rows = pq.read_table(asset_path("emoji", "concepts.parquet")).to_pylist()
        sides = {"train": (False,), "held_out": (True,), "all": (False, True)}[concepts]
        self.artists = tuple(artists)
        self.concepts = tuple(
            Concept(
                hexcode=row["hexcode"],
                label_en=row["label_en"],
                label_zh=row["label_zh"],
                tags_en=tuple(row["tags_en"]),
                group=row["group"],
            )
            for row in rows
            if (crc32(row["hexcode"].encode()) / 2**32 < held_out_share) in sides
        )

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order of the set."""
        return tuple(dict.fromkeys(concept.group for concept in self.concepts))

    @cached_property
    def _encoded(self) -> dict[str, dict[str, bytes]]:
        wanted = {concept.hexcode for concept in self.concepts}
        encoded: dict[str, dict[str, bytes]] = {}
        for artist in self.artists:
            table = pq.read_table(asset_path("emoji", f"{artist}.parquet"))
            columns = zip(table["hexcode"].to_pylist(), table["image"].to_pylist(), strict=True)
            encoded[artist] = {code: data for code, data in columns if code in wanted}
        return encoded

    def picture(self, concept: Concept, artist: str) -> Pixels:
        """One drawing, (64, 64, 3) uint8 on white."""
        encoded = io.BytesIO(self._encoded[artist][concept.hexcode])
        with Image.open(encoded, formats=["WEBP"]) as image:
            return cast(Pixels, np.asarray(image.convert("RGB")))
