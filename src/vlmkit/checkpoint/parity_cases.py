"""Inputs for comparing two implementations: token ids and patches drawn from a seed, no tokenizer needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmkit.batch import Grid
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.sequence import SpecialTokens

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Image:
    """A picture of so many visual tokens."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Video:
    """A clip; its frames stand apart in the text, each behind a few tokens, as with timestamps."""

    frames: int
    rows: int
    columns: int


Part = int | Image | Video
"""A number is a run of that many text tokens."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch of rows of different length."""

    rows: Sequence[Sequence[Part]]
    pad_left: bool = False  # where shorter rows are padded


CASES: Mapping[str, Case] = {
    "text": Case(rows=[[23], [11]]),
    "one image": Case(rows=[[5, Image(2, 3), 7]]),
    "several images": Case(
        rows=[
            [3, Image(2, 2), Image(1, 4), 4, Image(3, 2)],
            [2, Image(2, 1), 6],
        ],
        pad_left=True,
    ),
    "video": Case(rows=[[4, Video(3, 2, 2), 6]]),
    "mix": Case(
        rows=[
            [2, Video(2, 2, 3), 3, Image(3, 3), 2, Video(1, 1, 2), 4],
            [6, Image(1, 2), 5],
        ]
    ),
}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What the inputs of a model look like."""

    vocab_size: int
    special: SpecialTokens
    merge_size: int
    patch_dim: int

    @classmethod
    def of(cls, model: Qwen3VL) -> InputSpec:
        """Read it from a model, which may be on meta."""
        return cls(
            vocab_size=model.decoder.vocab_size,
            special=model.special_tokens,
            merge_size=model.merger.merge_size,
            patch_dim=model.vision.patch_dim,
        )


def make_inputs(case: Case, spec: InputSpec, seed: int) -> Inputs:
    """What the transformers processor would return for such a batch.

    Args:
        case: what the rows hold.
        spec: of the checkpoint.
        seed: of tokens and pixels.
    """
    writer = _Writer(spec, seed)
    written = [writer.row(parts) for parts in case.rows]
    length = max(len(ids) for ids, _ in written)
    input_ids = torch.zeros(len(written), length, dtype=torch.int64)
    kinds, mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for i, (ids, types) in enumerate(written):
        place = slice(length - len(ids), length) if case.pad_left else slice(0, len(ids))
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
        special = vars(spec.special).values()
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
            yield from self._frame(self.spec.special.image_id, 1, part.rows * part.columns)
        else:
            self.videos.append((part.frames, part.rows * side, part.columns * side))
            for _ in range(part.frames):
                yield from self._text(3)
                yield from self._frame(self.spec.special.video_id, 2, part.rows * part.columns)

    def _text(self, count: int) -> Iterator[tuple[int, int]]:
        drawn = torch.randint(len(self.plain), (count,), generator=self.random)
        for i in drawn.tolist():
            yield self.plain[i], 0

    def _frame(self, token_id: int, kind: int, count: int) -> Iterator[tuple[int, int]]:
        yield self.spec.special.vision_start_id, 0
        yield from [(token_id, kind)] * count
        yield self.spec.special.vision_end_id, 0
