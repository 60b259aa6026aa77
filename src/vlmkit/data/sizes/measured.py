"""What headers tell about many samples of a source, as columns."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.image import PlannedImage
from vlmkit.data.order.work import Floats, Ints, Sizes
from vlmkit.data.processor import Plan
from vlmkit.data.sizes.size_table import REASONS, SizeTable
from vlmkit.data.video import PlannedVideo
from vlmkit.errors import Reason
from vlmkit.sequence import VisionSpan

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Arrays of one length."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def __getitem__(self, chosen: Flags | Ints | slice) -> Self:
        """Some of the rows."""
        return type(self)(**{name: column[chosen] for name, column in vars(self).items()})

    @classmethod
    def of_rows(cls, rows: Iterable[Sequence[Any]]) -> Self:
        """Columns from rows, whose values are in the order of the fields."""
        table = list(rows)
        columns = list(zip(*table, strict=True)) if table else [()] * len(fields(cls))
        types = (_TYPES[str(field.type)] for field in fields(cls))
        arrays: list[NDArray] = [
            np.array(column, dtype=t) for column, t in zip(columns, types, strict=True)
        ]
        names = (field.name for field in fields(cls))
        return cls(**dict(zip(names, arrays, strict=True)))


_TYPES = {"Ints": np.int64, "Floats": np.float64, "Flags": np.bool_}


@dataclass(frozen=True, kw_only=True)
class SampleColumns(Columns):
    """One row per sample; sizes are 0 where it cannot be used."""

    position: Ints  # in its source
    code: Ints  # 0: it can be used; i + 1: `REASONS[i]` is why not
    tokens: Ints
    scored: Ints
    patches: Ints
    patch_pairs: Ints
    visual_tokens: Ints
    whole_tokens: Ints  # before anything was done about its length
    whole_patches: Ints
    remedy: Ints  # number of what was done about its length, from 1; 0: it fits as it is
    images: Ints
    videos: Ints


@dataclass(frozen=True, kw_only=True)
class MediaColumns(Columns):
    """One row per picture or video of a usable sample."""

    position: Ints  # of its sample
    is_video: Flags
    height: Ints  # of the source
    width: Ints
    resized_height: Ints
    resized_width: Ints
    frames: Ints  # kept
    seconds: Floats  # between first and last kept frame; 0 for pictures
    file_seconds: Floats
    file_fps: Floats


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Samples of a source, in the order of their positions, and their media."""

    samples: SampleColumns
    media: MediaColumns

    @classmethod
    def none(cls) -> Measured:
        """No samples."""
        return cls(samples=SampleColumns.of_rows([]), media=MediaColumns.of_rows([]))

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """The samples of all parts, in their order."""
        if not parts:
            return cls.none()
        return cls(
            samples=_concatenated([part.samples for part in parts]),
            media=_concatenated([part.media for part in parts]),
        )

    def replaced(self, others: Measured) -> Measured:
        """With other rows for some of the samples."""
        stay = ~np.isin(self.samples.position, others.samples.position)
        kept = ~np.isin(self.media.position, others.samples.position)
        both = Measured.joined(
            [Measured(samples=self.samples[stay], media=self.media[kept]), others]
        )
        return Measured(
            samples=both.samples[np.argsort(both.samples.position, kind="stable")],
            media=both.media[np.argsort(both.media.position, kind="stable")],
        )

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
                return cls(
                    samples=SampleColumns(
                        **{f.name: columns[f.name] for f in fields(SampleColumns)}
                    ),
                    media=MediaColumns(
                        **{f.name: columns[f"media.{f.name}"] for f in fields(MediaColumns)}
                    ),
                )
        except (BadZipFile, KeyError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def save(self, path: Path) -> None:
        """Write to a file in one step: after a kill there is the whole file or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        media = {f"media.{name}": column for name, column in vars(self.media).items()}
        with part.open("wb") as file:
            np.savez_compressed(file, **vars(self.samples), **media)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def usable(self) -> Flags:
        """Which samples can be used."""
        flags: Flags = self.samples.code == 0
        return flags

    def reasons(self) -> dict[Reason, int]:
        """Samples that cannot be used, by reason, most frequent first."""
        codes, counts = np.unique(self.samples.code[~self.usable], return_counts=True)
        found = {REASONS[code - 1]: int(n) for code, n in zip(codes, counts, strict=True)}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def table(self, key: str) -> SizeTable:
        """The sizes alone."""
        return SizeTable(
            sizes=Sizes(**{f.name: getattr(self.samples, f.name) for f in fields(Sizes)}),
            codes=self.samples.code.astype(np.uint8),
            key=key,
        )


Some = TypeVar("Some", bound=Columns)


def _concatenated(parts: Sequence[Some]) -> Some:
    first = parts[0]
    return type(first)(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(first)}
    )


def sample_row(position: int, plan: Plan, whole: Plan, remedy: int) -> tuple[int, ...]:
    """Values of `SampleColumns` for a usable sample.

    Args:
        position: in its source.
        plan: that is loaded in training.
        whole: before anything was done about its length.
        remedy: what was done about it.
    """
    kinds = [isinstance(item, PlannedVideo) for item in plan.media]
    return (
        position,
        0,
        plan.num_tokens,
        plan.num_scored,
        plan.num_patches,
        sum(time * (rows * columns) ** 2 for time, rows, columns in plan.grids),
        sum(span.num_tokens for span in plan.spans if isinstance(span, VisionSpan)),
        whole.num_tokens,
        whole.num_patches,
        remedy,
        kinds.count(False),
        kinds.count(True),
    )


def left_out_row(position: int, reason: Reason, whole: Plan | None) -> tuple[int, ...]:
    """Values of `SampleColumns` for a sample that cannot be used; `whole` if it got that far."""
    code = REASONS.index(reason) + 1
    tokens, patches = (whole.num_tokens, whole.num_patches) if whole is not None else (0, 0)
    return (position, code, 0, 0, 0, 0, 0, tokens, patches, 0, 0, 0)


def media_rows(position: int, plan: Plan) -> list[tuple[float, ...]]:
    """Values of `MediaColumns` for the media of a usable sample, as far as they are of a known kind."""
    rows: list[tuple[float, ...]] = []
    for item in plan.media:
        if isinstance(item, PlannedVideo):
            times, file_seconds = item.frame_times_s, item.reader.duration_s
            clock = (times[-1] - times[0], file_seconds, item.reader.num_frames / file_seconds)
            is_video, frames = True, len(times)
        elif isinstance(item, PlannedImage):
            is_video, frames, clock = False, 1, (0.0, 0.0, 0.0)
        else:
            continue
        side = item.transform.patch_size
        resized = item.grid[1] * side, item.grid[2] * side
        rows.append((position, is_video, *item.source_size, *resized, frames, *clock))
    return rows
