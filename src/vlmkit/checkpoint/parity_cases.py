"""Inputs for comparing two implementations: token ids and patches drawn from a seed, no tokenizer needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int, int]
Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture of so many patches."""

    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class Video:
    """A clip; its frames stand apart in the text, each behind a few tokens, as with timestamps."""

    frames: int
    rows: int
    columns: int


Part = int | Image | Video
"""A number is a run of that many text tokens."""

# Rows of each batch. Sizes are counted in merge windows and multiplied by the merge size.
CASES: Mapping[str, Sequence[Sequence[Part]]] = {
    "text": [[23], [11]],
    "one image": [[5, Image(rows=2, columns=3), 7]],
    "several images": [
        [3, Image(rows=2, columns=2), Image(rows=1, columns=4), 4, Image(rows=3, columns=2), 5],
        [2, Image(rows=2, columns=1), 6],
    ],
    "video": [[4, Video(frames=3, rows=2, columns=2), 6]],
    "mix": [
        [
            2,
            Video(frames=2, rows=2, columns=3),
            3,
            Image(rows=3, columns=3),
            2,
            Video(frames=1, rows=1, columns=2),
            4,
        ],
        [6, Image(rows=1, columns=2), 5],
    ],
}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What the inputs of a checkpoint look like."""

    vocab_size: int
    image_id: int
    video_id: int
    vision_start_id: int
    vision_end_id: int
    merge_size: int
    patch_dim: int

    @classmethod
    def from_published(cls, config: Mapping[str, Any]) -> InputSpec:
        """Read it from a published config.json."""
        vision = config["vision_config"]
        side = vision["patch_size"]
        return cls(
            vocab_size=config["text_config"]["vocab_size"],
            image_id=config["image_token_id"],
            video_id=config["video_token_id"],
            vision_start_id=config["vision_start_token_id"],
            vision_end_id=config["vision_end_token_id"],
            merge_size=vision["spatial_merge_size"],
            patch_dim=vision["in_channels"] * vision["temporal_patch_size"] * side * side,
        )


def make_inputs(
    rows: Sequence[Sequence[Part]], spec: InputSpec, seed: int, pad_left: bool = False
) -> Inputs:
    """What the transformers processor would return for such a batch.

    Args:
        rows: one list of parts per row.
        spec: of the checkpoint.
        seed: of tokens and pixels.
        pad_left: where shorter rows are padded.
    """
    writer = _Writer(spec, seed)
    written = [writer.row(parts) for parts in rows]
    length = max(len(ids) for ids, _ in written)
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    kinds, mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for i, (ids, types) in enumerate(written):
        place = slice(length - len(ids), length) if pad_left else slice(0, len(ids))
        input_ids[i, place] = torch.tensor(ids)
        kinds[i, place] = torch.tensor(types)
        mask[i, place] = 1
    inputs = {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": kinds}
    for pixels, grids, found in (
        ("pixel_values", "image_grid_thw", writer.images),
        ("pixel_values_videos", "video_grid_thw", writer.videos),
    ):
        if found:
            grid_thw = torch.tensor(found)
            inputs[grids] = grid_thw
            inputs[pixels] = writer.pixels(int(grid_thw.prod(1).sum()))
    return inputs


class _Writer:
    """Draws rows of tokens and remembers the grids."""

    def __init__(self, spec: InputSpec, seed: int) -> None:
        self.spec = spec
        self.random = torch.Generator().manual_seed(seed)
        self.images: list[Grid] = []
        self.videos: list[Grid] = []
        special = {spec.image_id, spec.video_id, spec.vision_start_id, spec.vision_end_id}
        self.plain = [token for token in range(min(spec.vocab_size, 4096)) if token not in special]

    def row(self, parts: Sequence[Part]) -> tuple[list[int], list[int]]:
        """Token ids, and 0, 1 or 2 for text, image and video."""
        tokens: list[tuple[int, int]] = []
        for part in parts:
            tokens += self._part(part)
        return [token for token, _ in tokens], [kind for _, kind in tokens]

    def pixels(self, count: int) -> Tensor:
        """(count, patch_dim), in the range of normalised pixels."""
        return torch.rand(count, self.spec.patch_dim, generator=self.random) * 2 - 1

    def _part(self, part: Part) -> Iterator[tuple[int, int]]:
        side = self.spec.merge_size
        if isinstance(part, int):
            yield from self._text(part)
        elif isinstance(part, Image):
            self.images.append((1, part.rows * side, part.columns * side))
            yield from self._frame(self.spec.image_id, 1, part.rows * part.columns)
        else:
            self.videos.append((part.frames, part.rows * side, part.columns * side))
            for _ in range(part.frames):
                yield from self._text(3)
                yield from self._frame(self.spec.video_id, 2, part.rows * part.columns)

    def _text(self, count: int) -> Iterator[tuple[int, int]]:
        drawn = torch.randint(len(self.plain), (count,), generator=self.random)
        for i in drawn.tolist():
            yield self.plain[i], 0

    def _frame(self, token_id: int, kind: int, count: int) -> Iterator[tuple[int, int]]:
        yield self.spec.vision_start_id, 0
        yield from [(token_id, kind)] * count
        yield self.spec.vision_end_id, 0
