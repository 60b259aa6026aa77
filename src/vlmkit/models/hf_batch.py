"""What the transformers Qwen3-VL processor returns -> our batch, so that pipelines can be moved over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor

from vlmkit.batch import IGNORED_LABEL, Grid, Segments, VisionInputs, VLMBatch
from vlmkit.position.ids import mrope_position_ids
from vlmkit.sequence import Span, SpecialTokens, TextSpan, VisionSpan


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One temporal patch of an image or video: where its patches lie, and its grid."""

    medium: tuple[int, int]  # placeholder id, number among the media of that kind
    patches: Tensor  # (rows * columns, patch_dim)
    rows: int
    columns: int

    def span(self, merge_size: int) -> VisionSpan:
        return VisionSpan(
            placeholder_id=self.medium[0],
            rows=self.rows // merge_size,
            columns=self.columns // merge_size,
        )


def batch_from_hf(
    inputs: Mapping[str, Any], special_tokens: SpecialTokens | None = None, merge_size: int = 2
) -> VLMBatch:
    """Rebuild a batch from a processor's tensors.

    Every image and every frame of a video becomes a span of its own, as in the released model; frames
    and images that touch are told apart by their grids. Attention sees a row's real tokens only.
    Labels move one place to the left, and none is scored from a padding token.

    Args:
        inputs: `input_ids` (batch, seq), and where there are any `attention_mask` (padding on either
            side), `pixel_values` with `image_grid_thw`, `pixel_values_videos` with `video_grid_thw`,
            and `labels` in place, as transformers takes them.
        special_tokens: ids of the placeholders; the full Qwen3 vocabulary's by default.
        merge_size: side of the window of patches that becomes one visual token.

    Raises:
        ValueError: placeholders, grids and patches disagree (shows the counts), or a mask has holes.
    """
    special = special_tokens or SpecialTokens()
    input_ids = torch.as_tensor(inputs["input_ids"]).cpu()
    rows, length = input_ids.shape
    mask = inputs.get("attention_mask")
    real = torch.ones_like(input_ids) if mask is None else torch.as_tensor(mask).cpu()
    real = real.bool()
    media = {
        special.image_id: _frames(inputs, "pixel_values", "image_grid_thw", special.image_id),
        special.video_id: _frames(
            inputs, "pixel_values_videos", "video_grid_thw", special.video_id
        ),
    }
    _check_counts(input_ids[real], media, merge_size)

    position_ids = torch.zeros(3, rows, length, dtype=torch.int64)
    lengths: list[int] = []
    used: list[_Frame] = []
    remaining = {token_id: iter(frames) for token_id, frames in media.items()}
    for row in range(rows):
        start, end = _extent(real[row], row)
        spans = list(_spans(input_ids[row, start:end].tolist(), remaining, used, merge_size))
        position_ids[:, row, start:end] = mrope_position_ids(spans)
        lengths += [start, end - start, length - end]

    placeholders = torch.isin(input_ids, torch.tensor(special.placeholder_ids)) & real
    labels = _shifted_labels(inputs.get("labels"), real)
    sample_ids = torch.arange(rows)[:, None].expand(rows, length).masked_fill(~real, -1)
    return VLMBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=Segments.from_lengths(lengths),
        visual_index=placeholders.flatten().nonzero().flatten(),
        vision=_vision_inputs(used, merge_size),
        labels=labels,
        scored_index=None if labels is None else _scored(labels),
        sample_ids=sample_ids,
        num_samples=rows,
        padding_mask=None if real.all() else ~real,
        num_padding=int((~real).sum()),
    )


def _frames(inputs: Mapping[str, Any], pixels: str, grids: str, token_id: int) -> list[_Frame]:
    """The temporal patches of all images, or of all videos, in the order of the processor."""
    patches, grid_thw = inputs.get(pixels), inputs.get(grids)
    if (patches is None) != (grid_thw is None):
        given, absent = (pixels, grids) if grid_thw is None else (grids, pixels)
        raise ValueError(f"{given} comes with {absent}, which is missing")
    if patches is None or grid_thw is None:
        return []
    patches = torch.as_tensor(patches).cpu()
    grid_list: list[list[int]] = torch.as_tensor(grid_thw).tolist()
    expected = sum(time * rows * columns for time, rows, columns in grid_list)
    if expected != len(patches):
        raise ValueError(
            f"{grids} {grid_list} hold {expected} patches, {pixels} has {len(patches)}"
        )
    frames = []
    offset = 0
    for number, (time, rows, columns) in enumerate(grid_list):
        for _ in range(time):
            part = patches[offset : offset + rows * columns]
            frames.append(
                _Frame(medium=(token_id, number), patches=part, rows=rows, columns=columns)
            )
            offset += rows * columns
    return frames


def _check_counts(tokens: Tensor, media: Mapping[int, list[_Frame]], merge_size: int) -> None:
    for token_id, frames in media.items():
        placeholders = int((tokens == token_id).sum())
        expected = sum(frame.span(merge_size).num_tokens for frame in frames)
        if placeholders != expected:
            raise ValueError(
                f"the text holds {placeholders} placeholders of id {token_id}, "
                f"the grids give {expected} visual tokens"
            )


def _extent(real: Tensor, row: int) -> tuple[int, int]:
    """First and one past the last real token of a row."""
    where = real.nonzero().flatten().tolist()
    if not where:
        return 0, 0
    start, end = where[0], where[-1] + 1
    if end - start != len(where):
        raise ValueError(
            f"attention_mask of row {row} has holes: {len(where)} real tokens over {end - start}"
        )
    return start, end


def _spans(
    token_ids: list[int],
    remaining: Mapping[int, Iterator[_Frame]],
    used: list[_Frame],
    merge_size: int,
) -> Iterator[Span]:
    """Cut a row into text and frames; the frames taken are appended to `used`."""
    text: list[int] = []
    i = 0
    while i < len(token_ids):
        token_id = token_ids[i]
        if token_id not in remaining:
            text.append(token_id)
            i += 1
            continue
        if text:
            yield TextSpan(token_ids=tuple(text))
            text = []
        frame = next(remaining[token_id])
        span = frame.span(merge_size)
        run = len(list(takewhile(token_id.__eq__, token_ids[i : i + span.num_tokens])))
        if run < span.num_tokens:
            raise ValueError(
                f"a run of {run} placeholders of id {token_id} meets an image or frame of "
                f"{span.num_tokens} visual tokens ({frame.rows} x {frame.columns} patches)"
            )
        used.append(frame)
        yield span
        i += span.num_tokens
    if text:
        yield TextSpan(token_ids=tuple(text))


def _vision_inputs(frames: list[_Frame], merge_size: int) -> VisionInputs | None:
    """Patches in the order of their tokens; frames of a video that follow one another share a grid."""
    if not frames:
        return None
    grids: list[Grid] = []
    for _, group in groupby(frames, key=lambda frame: frame.medium):
        members = list(group)
        grids.append((len(members), members[0].rows, members[0].columns))
    patches = torch.cat([frame.patches for frame in frames])
    return VisionInputs.from_grids(patches, grids, merge_size)


def _shifted_labels(labels: Any, real: Tensor) -> Tensor | None:
    if labels is None:
        return None
    shifted = torch.full(real.shape, IGNORED_LABEL, dtype=torch.int64)
    shifted[:, :-1] = torch.as_tensor(labels).cpu()[:, 1:]
    follows = torch.zeros_like(real)
    follows[:, :-1] = real[:, 1:]
    return shifted.masked_fill(~(real & follows), IGNORED_LABEL)


def _scored(labels: Tensor) -> Tensor:
    return (labels.flatten() != IGNORED_LABEL).nonzero().flatten()
