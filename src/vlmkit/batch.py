"""The frozen dataclasses that cross module borders, and the legend of shapes.

Legend
    batch           rows of a micro-batch
    seq             tokens of a row (several samples and a padding tail)
    tokens          batch * seq, rows laid end to end (row-major)
    visual_tokens   placeholders of all rows, in row-major order
    patches         ViT patches of all images and video frames; `merge_size**2` per visual token
    dim             decoder width; `vision_dim` is the encoder's

Everything that decides control flow (lengths, grids, counts) is a Python integer made on the host, so
that a model never has to ask the device for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

IGNORED_LABEL = -100
"""Label of a position whose next token is not scored (torch's `ignore_index`)."""

Grid = tuple[int, int, int]
"""Temporal patches, rows and columns of one image or video, in patches before merging."""


class Movable:
    """Gives a frozen dataclass the `.to(device)` that Lightning asks for."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy whose tensors, nested ones too, are on `device`."""
        return self._changed(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy whose tensors are in page-locked memory, for asynchronous copies to a GPU."""
        return self._changed(lambda value: value.pin_memory())

    def _changed(self, change: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Movable):
                changed[field.name] = change(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], Movable):
                changed[field.name] = tuple(change(item) for item in value)
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Segments(Movable):
    """Where sequences begin and end in a line of packed tokens.

    Attention never crosses a boundary. Boundaries are stated, never inferred from positions or masks.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor  # (segments + 1,) int32, for the varlen kernels

    @classmethod
    def from_lengths(cls, lengths: Iterable[int]) -> Segments:
        """Build from segment lengths; empty segments are dropped."""
        kept = tuple(length for length in lengths if length > 0)
        return cls(
            lengths=kept,
            cu_seqlens=torch.tensor([0, *accumulate(kept)], dtype=torch.int32),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens covered by all segments."""
        return sum(self.lengths)

    @property
    def max_length(self) -> int:
        """Length of the longest segment."""
        return max(self.lengths, default=0)


@dataclass(frozen=True, kw_only=True)
class VisionInputs(Movable):
    """Patches of all images and video frames of a micro-batch, in the order of their visual tokens."""

    patches: Tensor  # (patches, channels * time * height * width of one patch)
    grids: tuple[Grid, ...]
    coords: Tensor  # (patches, 4) int64: row, column, and the rows and columns of the patch's grid
    segments: Segments  # one per temporal patch: frames do not see each other in the encoder
    merge_size: int

    @classmethod
    def from_grids(cls, patches: Tensor, grids: Sequence[Grid], merge_size: int) -> VisionInputs:
        """Derive coordinates and attention segments from the grids.

        Args:
            patches: (patches, patch_dim), each grid's patches in merge-window order.
            grids: (time, rows, columns) of each image or video, in patches.
            merge_size: side of the window of patches that becomes one visual token.

        Raises:
            ValueError: a grid does not divide by `merge_size`, or the counts disagree.
        """
        for grid in grids:
            if grid[1] % merge_size or grid[2] % merge_size:
                raise ValueError(f"grid {grid} does not divide by merge_size {merge_size}")
        expected = sum(time * rows * columns for time, rows, columns in grids)
        if expected != len(patches):
            raise ValueError(
                f"the grids {list(grids)} hold {expected} patches, the tensor has {len(patches)}"
            )
        return cls(
            patches=patches,
            grids=tuple(grids),
            coords=patch_coordinates(grids, merge_size),
            segments=Segments.from_lengths(
                rows * columns for time, rows, columns in grids for _ in range(time)
            ),
            merge_size=merge_size,
        )

    @classmethod
    def blank(cls, patch_dim: int, merge_size: int) -> VisionInputs:
        """The smallest picture there is, all zeros: one visual token."""
        patches = torch.zeros(merge_size**2, patch_dim)
        return cls.from_grids(patches, [(1, merge_size, merge_size)], merge_size)

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens after merging."""
        return self.segments.num_tokens // self.merge_size**2

    def frames(self, start: int, stop: int) -> VisionInputs:
        """Temporal patches start .. stop - 1, counted over all images and videos."""
        lengths = self.segments.lengths
        first, last = sum(lengths[:start]), sum(lengths[:stop])
        grids: list[Grid] = []
        begin = 0
        for time, rows, columns in self.grids:
            inside = min(stop, begin + time) - max(start, begin)
            if inside > 0:
                grids.append((inside, rows, columns))
            begin += time
        return VisionInputs(
            patches=self.patches[first:last],
            grids=tuple(grids),
            coords=self.coords[first:last],
            segments=Segments.from_lengths(lengths[start:stop]).to(self.segments.cu_seqlens.device),
            merge_size=self.merge_size,
        )


def patch_coordinates(grids: Sequence[Grid], merge_size: int) -> Tensor:
    """Row, column and grid extent of every patch, in merge-window order.

    Returns:
        (patches, 4) int64: row, column, number of rows, number of columns.
    """
    parts = []
    for time, rows, columns in grids:
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        one_frame = torch.stack(
            [row, column, torch.full_like(row, rows), torch.full_like(row, columns)], dim=-1
        )
        windows = one_frame.view(
            rows // merge_size, merge_size, columns // merge_size, merge_size, 4
        )
        parts.append(windows.transpose(1, 2).reshape(1, -1, 4).expand(time, -1, -1).reshape(-1, 4))
    return torch.cat(parts) if parts else torch.zeros(0, 4, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """Vision as the decoder sees it: where it stands, what enters, and what fusion adds later."""

    index: Tensor  # (visual_tokens,) int64, positions in the line of batch * seq tokens
    embeddings: Tensor  # (visual_tokens, dim)
    levels: tuple[Tensor, ...] = ()  # each (visual_tokens, dim), one per tapped encoder block

    def __post_init__(self) -> None:
        """Make sure that there is one feature per placeholder, in the main path and on every level.

        Raises:
            ValueError: names both counts.
        """
        for what, features in (("merger", self.embeddings), *(("fusion", x) for x in self.levels)):
            if len(features) != len(self.index):
                raise ValueError(
                    f"the text holds {len(self.index)} visual placeholders, "
                    f"the {what} gives {len(features)} features"
                )

    def window(self, start: int, stop: int) -> VisualTokens:
        """Those that stand at positions start .. stop - 1, with positions counted from `start`."""
        inside = (self.index >= start) & (self.index < stop)
        return VisualTokens(
            index=self.index[inside] - start,
            embeddings=self.embeddings[inside],
            levels=tuple(level[inside] for level in self.levels),
        )


class Modality(IntEnum):
    """What a sample holds beside text; its number in `VLMBatch.modality_ids`."""

    TEXT = 0
    IMAGE = 1
    VIDEO = 2
    MIXED = 3  # images and videos

    @classmethod
    def of(cls, *, has_image: bool, has_video: bool) -> Modality:
        """That of a sample with or without images and videos."""
        return cls(cls.IMAGE * has_image + cls.VIDEO * has_video)


@dataclass(frozen=True, kw_only=True)
class VLMBatch(Movable):
    """A micro-batch of packed rows."""

    input_ids: Tensor  # (batch, seq) int64
    position_ids: Tensor  # (3, batch, seq) int64: time, height, width
    segments: Segments  # over batch * seq tokens; a padding tail is a segment of its own
    visual_index: (
        Tensor  # (visual_tokens,) int64, positions of placeholders among batch * seq tokens
    )
    vision: VisionInputs | None = None
    labels: Tensor | None = None  # (batch, seq) int64: the token that follows, or IGNORED_LABEL
    scored_index: Tensor | None = None  # (scored_tokens,) int64, where labels is not IGNORED_LABEL
    sample_ids: Tensor | None = (
        None  # (batch, seq) int64: sample within the micro-batch, -1 on padding
    )
    num_samples: int = 0
    response_ids: Tensor | None = (
        None  # (batch, seq) int64, aligned with labels: response within the micro-batch, -1 unscored
    )
    num_responses: int = 0
    source_ids: Tensor | None = None  # (samples,) int64, number of the source of each sample
    modality_ids: Tensor | None = None  # (samples,) int64, `Modality` of each sample, -1 unknown
    padding_mask: Tensor | None = None  # (batch, seq) bool, True on padding; None: there is none
    num_padding: int = 0  # tokens of the padding tails

    def __post_init__(self) -> None:
        """Check what would otherwise surface deep inside the model.

        Raises:
            ValueError: segments do not cover the tokens, or placeholders and features differ in number.
        """
        if self.segments.num_tokens != self.input_ids.numel():
            raise ValueError(
                f"segments cover {self.segments.num_tokens} tokens, "
                f"input_ids has {self.input_ids.numel()}"
            )
        features = self.vision.num_visual_tokens if self.vision is not None else 0
        if features != len(self.visual_index):
            raise ValueError(
                f"the text holds {len(self.visual_index)} visual placeholders, "
                f"the images and videos give {features} features"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.input_ids.numel() - self.num_padding


@dataclass(frozen=True, kw_only=True)
class Member:
    """Says which sample of which source stands in a batch."""

    source: str
    key: int
    origin: str  # file and row, where there is one


@dataclass(frozen=True, kw_only=True)
class StepBatch(Movable):
    """All micro-batches of one step on this rank, and what became of its samples."""

    step: int
    micro_batches: tuple[VLMBatch, ...]  # one at least
    tokens: dict[str, int]  # by source, of this rank, visual ones included
    samples: dict[str, int]  # used, by source
    members: tuple[tuple[Member, ...], ...] = ()  # samples of each micro-batch, in their order
    rows_hash: int = 0  # of the step's rows over all ranks, which must all have planned the same
    skipped: tuple[Any, ...] = ()  # `vlmkit.data.order.samples.Skipped`, each reported by one rank

    @property
    def num_tokens(self) -> int:
        """Tokens of this rank that are not padding."""
        return sum(micro.num_tokens for micro in self.micro_batches)
