"""What a page shows: a micro-batch cut into rows and samples, beside what its samples say of themselves.

Tokens, labels, positions, segments and pixels come from the batch, never from the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vlmkit.batch import IGNORED_LABEL, Grid, VLMBatch
from vlmkit.data.order.samples import Skipped
from vlmkit.data.order.work import Limits, Sizes, TransformerWork
from vlmkit.data.processor import Example, Processor
from vlmkit.data.record import Conversation
from vlmkit.inspection.media import Medium, Run, shapes_by_image, written_time
from vlmkit.inspection.tokens import Vocabulary

Ints = NDArray[np.int64]

_TEXT_BEFORE = 48
"""Tokens before a visual run in which its timestamp is looked for."""


class Kind(IntEnum):
    """What a token is to the loss and to the encoder."""

    MASKED = 0
    SUPERVISED = 1  # the model is trained to predict this token
    VISUAL = 2
    PADDING = 3


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample in a row; `start` and `stop` are places in the row, of the batch's own segment."""

    number: int  # in the micro-batch, from 0
    start: int
    stop: int
    source: str
    origin: str = ""
    media: tuple[Medium, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens, visual ones included."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the micro-batch; arrays are (seq,), positions (3, seq)."""

    number: int
    ids: Ints
    labels: Ints
    positions: Ints
    kinds: NDArray[np.uint8]
    samples: tuple[Sample, ...]
    segments: tuple[tuple[int, int], ...]  # start and stop of what attends to itself; padding too
    num_patches: int
    work: float  # multiplications of the forward pass; 0 where it is not known

    def count(self, kind: Kind, start: int = 0, stop: int | None = None) -> int:
        """Tokens of a kind."""
        return int((self.kinds[start:stop] == kind).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return len(self.ids) - self.count(Kind.PADDING)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A micro-batch among those of a step.

    Attributes:
        step: of the optimiser.
        number: among the micro-batches of the step, from 0.
        num_micro_batches: of the step.
        rows: of the micro-batch.
        limits: what a row holds at most.
        mean_work: of a row of the step; 0 where it is not known.
        skipped: samples of the step that were left out.
        facts: how it was made, in words.
        failures: what is wrong with it; nothing, unless the data path has a mistake.
    """

    step: int
    number: int
    num_micro_batches: int
    rows: tuple[Row, ...]
    limits: Limits
    mean_work: float = 0.0
    skipped: tuple[Skipped, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def sources(self) -> dict[str, tuple[int, int]]:
        """Samples and tokens by source, in order of first appearance."""
        counts: dict[str, tuple[int, int]] = {}
        for sample in (sample for row in self.rows for sample in row.samples):
            samples, tokens = counts.get(sample.source, (0, 0))
            counts[sample.source] = samples + 1, tokens + sample.num_tokens
        return counts

    def count(self, kind: Kind) -> int:
        """Tokens of a kind."""
        return sum(row.count(kind) for row in self.rows)


def view(
    batch: VLMBatch,
    examples: Sequence[Example],
    processor: Processor,
    *,
    limits: Limits,
    work: TransformerWork | None = None,
    step: int = 0,
    number: int = 0,
    num_micro_batches: int = 1,
    mean_work: float = 0.0,
    skipped: Sequence[Skipped] = (),
    facts: dict[str, str] | None = None,
) -> MicroBatch:
    """Cut a micro-batch up for a page.

    Args:
        batch: what the model gets.
        examples: that it was made from, in order.
        processor: that made them.
        limits: see `MicroBatch`.
        work: of a sample.
        step: see `MicroBatch`.
        number: see `MicroBatch`.
        num_micro_batches: see `MicroBatch`.
        mean_work: see `MicroBatch`.
        skipped: see `MicroBatch`.
        facts: see `MicroBatch`.
    """
    assert batch.num_samples == len(examples)
    rows = tuple(_rows(batch, examples, processor, work))
    return MicroBatch(
        step=step,
        number=number,
        num_micro_batches=num_micro_batches,
        rows=rows,
        limits=limits,
        mean_work=mean_work,
        skipped=tuple(skipped),
        facts=facts or {},
        failures=tuple(failures(rows)),
    )


def failures(rows: Sequence[Row]) -> Iterator[str]:
    """What no batch may ever show: labels, segments or positions that cross a sample's border."""
    for row in rows:
        following = np.append(row.ids[1:], -1)
        wrong = (row.labels != IGNORED_LABEL) & (row.labels != following)
        for sample in row.samples:
            where = f"row {row.number}, sample {sample.number}"
            last = sample.stop - 1
            if wrong[sample.start : last].any():
                yield f"{where}: a label is not the token that follows"
            if row.labels[last] != IGNORED_LABEL:
                yield f"{where}: its last token is trained to predict a token of the next sample"
            if (sample.start, sample.stop) not in row.segments:
                yield f"{where}: it is not a segment of its own, so attention crosses its borders"
            if row.positions[:, sample.start].any():
                yield f"{where}: its positions do not begin at 0"


def _rows(
    batch: VLMBatch,
    examples: Sequence[Example],
    processor: Processor,
    work: TransformerWork | None,
) -> Iterator[Row]:
    height, width = batch.input_ids.shape
    assert batch.labels is not None
    assert batch.sample_ids is not None
    ids, labels, owners, positions = (
        tensor.numpy()
        for tensor in (batch.input_ids, batch.labels, batch.sample_ids, batch.position_ids)
    )
    visual_line = np.zeros(height * width, dtype=bool)
    visual_line[batch.visual_index.numpy()] = True
    is_visual = visual_line.reshape(height, width)
    ends = np.cumsum([0, *batch.segments.lengths])
    vocabulary = Vocabulary(processor.tokenizer)
    pieces = _pieces(batch)
    for r in range(height):
        kinds = np.full(width, Kind.MASKED, dtype=np.uint8)
        kinds[1:][labels[r, :-1] != IGNORED_LABEL] = Kind.SUPERVISED
        kinds[is_visual[r]] = Kind.VISUAL
        kinds[owners[r] < 0] = Kind.PADDING
        samples: list[Sample] = []
        num_patches = 0
        for number in sorted(set(owners[r].tolist()) - {-1}):
            places = np.flatnonzero(owners[r] == number)
            example = examples[number]
            grids = [next(pieces) for _ in example.grids]
            num_patches += sum(len(patches) for _, patches in grids)
            samples.append(
                _sample(
                    Sample(
                        number=number,
                        start=int(places[0]),
                        stop=int(places[-1]) + 1,
                        source=example.source,
                    ),
                    example,
                    grids,
                    ids[r],
                    kinds,
                    processor,
                    vocabulary,
                )
            )
        inside = [(int(a), int(b)) for a, b in pairwise(ends)]
        plans = [examples[s.number].plan for s in samples]
        known = [plan for plan in plans if plan is not None]
        yield Row(
            number=r,
            ids=ids[r],
            labels=labels[r],
            positions=positions[:, r],
            kinds=kinds,
            samples=tuple(samples),
            segments=tuple(
                (a - r * width, b - r * width)
                for a, b in inside
                if a < (r + 1) * width and b > r * width
            ),
            num_patches=num_patches,
            work=float(work(Sizes.of(known)).sum()) if work and len(known) == len(plans) else 0.0,
        )


def _pieces(batch: VLMBatch) -> Iterator[tuple[Grid, Tensor]]:
    """Grid and patches of each picture or video, in order."""
    if batch.vision is None:
        return
    start = 0
    for grid in batch.vision.grids:
        stop = start + grid[0] * grid[1] * grid[2]
        yield grid, batch.vision.patches[start:stop]
        start = stop


def _sample(
    sample: Sample,
    example: Example,
    grids: Sequence[tuple[Grid, Tensor]],
    ids: Ints,
    kinds: NDArray[np.uint8],
    processor: Processor,
    vocabulary: Vocabulary,
) -> Sample:
    """A sample with its media."""
    places = sample.start + np.flatnonzero(kinds[sample.start : sample.stop] == Kind.VISUAL)
    planned = example.plan.media if example.plan is not None else (None,) * len(grids)
    conversation = example.plan.conversation if example.plan is not None else None
    media: list[Medium] = []
    counts = {"image": 0, "video": 0}
    used = 0
    for (grid, patches), plan in zip(grids, planned, strict=True):
        num_tokens = grid[0] * grid[1] * grid[2] // processor.image.merge_size**2
        mine, used = places[used : used + num_tokens], used + num_tokens
        is_video = ids[mine[0]] == processor.special_tokens.video_id
        kind = "video" if is_video else "image"
        counts[kind] += 1
        transform = getattr(plan, "transform", processor.video if is_video else processor.image)
        media.append(
            Medium(
                kind=kind,
                number=counts[kind],
                patches=patches,
                grid=grid,
                transform=transform,
                runs=tuple(_runs(mine, num_tokens // grid[0], sample.start, ids, vocabulary)),
                planned=plan,
            )
        )
    if conversation is None:
        return replace(sample, media=tuple(media))
    drawn, notes = shapes_by_image(conversation, [m.size for m in media if m.kind == "image"])
    shapes = iter(drawn)
    return replace(
        sample,
        origin=_origin(conversation),
        media=tuple(
            replace(m, shapes=tuple(next(shapes))) if m.kind == "image" else m for m in media
        ),
        notes=tuple(notes),
    )


def _runs(
    places: Ints, tokens_per_patch: int, first: int, ids: Ints, vocabulary: Vocabulary
) -> Iterator[Run]:
    """Runs of visual tokens without a break, each with the time that stands before it."""
    patch = 0
    for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
        start, num_patches = int(run[0]), len(run) // tokens_per_patch
        before = ids[max(first, start - _TEXT_BEFORE) : start].tolist()
        while before and vocabulary.is_special(before[-1]):  # the start marker
            before.pop()
        at = max(
            (i + 1 for i, token in enumerate(before) if vocabulary.is_special(token)), default=0
        )
        yield Run(
            start=start,
            num_tokens=len(run),
            first_patch=patch,
            num_patches=num_patches,
            written=written_time(vocabulary.text(before[at:])),
        )
        patch += num_patches


def _origin(conversation: Conversation) -> str:
    return conversation.origin or (f"key {conversation.key}" if conversation.key else "")
