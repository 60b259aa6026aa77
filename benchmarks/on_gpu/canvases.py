"""Real drawings on canvases, through vlmkit's data path, and the same samples as transformers takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from vlmkit.batch import IGNORED_LABEL, VLMBatch
from vlmkit.build import build
from vlmkit.data.collate import collate
from vlmkit.data.media import ImageArray
from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.samples import Samples
from vlmkit.data.order.steps import FixedRows
from vlmkit.data.processor import Example, Plan, Processor
from vlmkit.data.quickstart.emoji import EmojiSet, Pixels
from vlmkit.data.quickstart.sources import conversation
from vlmkit.data.record import Conversation, ImagePart
from vlmkit.data.rows import Rows
from vlmkit.sequence import TextSpan

PUBLISHED_PIXELS = ("processor.image.min_pixels=65536", "processor.image.max_pixels=16777216")
"""Overrides: the budget of the released processor, instead of the quickstart's thumbnails."""

CELL = 64
"""Pixels on a side of a shipped drawing."""


class EmojiCanvases:
    """Canvases of many shapes filled with drawings; the questions ask for rows of them by name.

    Args:
        cells: drawings on a side of a canvas, the fewest and the most.
        turns: questions about a canvas, at most.
        size: samples before the source repeats.
        seed: of every random choice.
    """

    def __init__(
        self, cells: tuple[int, int] = (4, 20), turns: int = 12, size: int = 4096, seed: int = 0
    ) -> None:
        self.emoji = EmojiSet()
        self.cells, self.turns, self.size, self.seed = cells, turns, size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        """See `vlmkit.data.order.mixture.Source`."""
        rng = np.random.default_rng((self.seed, index))
        rows, columns = rng.integers(self.cells[0], self.cells[1] + 1, size=2).tolist()
        concepts = rng.integers(len(self.emoji.concepts), size=(rows, columns))
        asked = rng.permutation(rows)[: int(rng.integers(1, self.turns + 1))].tolist()
        turns = [
            (
                f"What stands in row {row + 1}?",
                ", ".join(self.emoji.concepts[i].label_en for i in concepts[row]),
            )
            for row in asked
        ]
        pixels = self._drawn(concepts, rng)
        return conversation(ImagePart(ImageArray(pixels)), turns, "canvases", index)

    def _drawn(self, concepts: Any, rng: np.random.Generator) -> Pixels:
        rows, columns = concepts.shape
        canvas = np.full((rows * CELL, columns * CELL, 3), 255, dtype=np.uint8)
        for row, column in np.ndindex(rows, columns):
            artist = str(rng.choice(self.emoji.artists))
            drawing = self.emoji.picture(self.emoji.concepts[concepts[row, column]], artist)
            top, left = row * CELL, column * CELL
            canvas[top : top + CELL, left : left + CELL] = drawing
        return canvas


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A row of samples as vlmkit takes it, and the samples themselves."""

    batch: VLMBatch
    examples: Sequence[Example]
    pad_id: int

    def padded(self) -> dict[str, Tensor]:
        """As transformers' processor and collators would give them: one row each, labels in place."""
        width = max(example.num_tokens for example in self.examples)
        shape = (len(self.examples), width)
        ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORED_LABEL)
        mask, kinds = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, example in enumerate(self.examples):
            at = 0
            for span in example.spans:
                place = slice(at, at + span.num_tokens)
                at += span.num_tokens
                if isinstance(span, TextSpan):
                    ids[i, place] = torch.tensor(span.token_ids)
                    if span.scored:
                        labels[i, place] = ids[i, place]
                else:
                    ids[i, place], kinds[i, place] = span.placeholder_id, 1
            mask[i, :at] = 1
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "mm_token_type_ids": kinds,
            "pixel_values": torch.cat([example.patches for example in self.examples]),
            "image_grid_thw": torch.tensor(
                [grid for example in self.examples for grid in example.grids]
            ),
        }


def packs(
    config: DictConfig, row_tokens: int, count: int, source: EmojiCanvases, seed: int = 0
) -> list[Pack]:
    """Nearly full rows: planned from headers, packed by size, then decoded, as in training.

    Args:
        config: of a run; its processor and work are used.
        row_tokens: capacity of a row.
        count: rows.
        source: of the samples.
        seed: of their order.
    """
    processor: Processor = build(config.processor)
    mixture = Mixture({"canvases": Weighted(source=source)}, seed=seed)
    samples = Samples(mixture, processor, Rows(row_tokens=row_tokens).limits)
    planner = FixedRows(count, build(config.work))
    ticket = next(planner.tickets(samples, planner.start()))
    assert ticket.rows is not None
    found = []
    for row in ticket.rows.rows:
        plans = [samples.plan(index) for index in row]
        examples = [plan.load() for plan in plans if isinstance(plan, Plan)]
        pad_id = processor.special_tokens.pad_id
        batch = collate([examples], pad_id=pad_id, merge_size=processor.image.merge_size)
        found.append(Pack(batch=batch, examples=examples, pad_id=pad_id))
    return found


def described(rows: Sequence[Pack]) -> str:
    """Sizes in words."""
    tokens = sum(pack.batch.num_tokens for pack in rows)
    lengths = [example.num_tokens for pack in rows for example in pack.examples]
    padded = sum(
        len(pack.examples) * max(example.num_tokens for example in pack.examples) for pack in rows
    )
    visual = sum(len(pack.batch.visual_index) for pack in rows)
    scored = sum(
        len(pack.batch.scored_index) for pack in rows if pack.batch.scored_index is not None
    )
    return (
        f"{len(rows)} packs of {tokens / len(rows):,.0f} tokens, {len(lengths)} samples of "
        f"{min(lengths):,} to {max(lengths):,}; {visual / tokens:.0%} visual, "
        f"{scored / tokens:.0%} scored; one sample a row, padded: {tokens / padded:.0%} of the slots filled"
    )
