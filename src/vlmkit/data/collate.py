"""Rows of examples -> VLMBatch; every number that the model must not compute is computed here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmkit.batch import IGNORED_LABEL, Segments, VisionInputs, VLMBatch
from vlmkit.data.patch_memory import joined
from vlmkit.data.processor import Example, Processor
from vlmkit.data.record import Conversation
from vlmkit.position.ids import mrope_position_ids
from vlmkit.sequence import TextSpan, VisionSpan


def collate(
    rows: Sequence[Sequence[Example]],
    *,
    pad_id: int,
    merge_size: int,
    row_tokens: int | None = None,
    sources: Sequence[str] = (),
) -> VLMBatch:
    """Build a micro-batch.

    Positions are those of each sample alone. A label is the token that follows within the sample, where
    that token is scored. Responses are numbered as the spans say, never from runs of labels.

    Args:
        rows: examples of each row, in order.
        pad_id: fills the tail of a row.
        merge_size: side of the window of patches that becomes one visual token.
        row_tokens: length of all rows; None takes the longest row's.
        sources: names of all sources, to number those of the samples; samples of others get -1.

    Raises:
        ValueError: a row is longer than `row_tokens`; vision spans and grids disagree.
    """
    lengths = [sum(example.num_tokens for example in row) for row in rows]
    width = max(*lengths, 1) if row_tokens is None else row_tokens
    if max(lengths) > width:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit row_tokens {width}")

    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORED_LABEL)
    sample_ids = torch.full(shape, -1)
    response_ids = torch.full(shape, -1)
    position_ids = torch.zeros(3, *shape, dtype=torch.int64)
    visual_mask = torch.zeros(shape, dtype=torch.bool)
    segment_lengths: list[int] = []
    num_samples = num_responses = 0
    for r, row in enumerate(rows):
        start = 0
        for example in row:
            ids, responses, visual = _flatten(example)
            stop = start + len(ids)
            input_ids[r, start:stop] = ids
            scored = responses[1:] >= 0
            labels[r, start : stop - 1] = torch.where(scored, ids[1:], IGNORED_LABEL)
            response_ids[r, start : stop - 1] = torch.where(
                scored, num_responses + responses[1:], -1
            )
            num_responses += int(responses.max()) + 1
            visual_mask[r, start:stop] = visual
            position_ids[:, r, start:stop] = mrope_position_ids(example.spans)
            sample_ids[r, start:stop] = num_samples
            segment_lengths.append(len(ids))
            num_samples += 1
            start = stop
        segment_lengths.append(width - start)

    examples = [example for row in rows for example in row]
    numbers = {name: number for number, name in enumerate(sources)}
    grids = [grid for example in examples for grid in example.grids]
    vision = None
    if grids:
        patches = joined([example.patches for example in examples if example.grids])
        vision = VisionInputs.from_grids(patches, grids, merge_size)
    return VLMBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=Segments.from_lengths(segment_lengths),
        visual_index=visual_mask.flatten().nonzero().squeeze(1),
        vision=vision,
        labels=labels,
        scored_index=(labels != IGNORED_LABEL).flatten().nonzero().squeeze(1),
        sample_ids=sample_ids,
        num_samples=num_samples,
        response_ids=response_ids,
        num_responses=num_responses,
        source_ids=torch.tensor(
            [numbers.get(example.source, -1) for example in examples], dtype=torch.int64
        ),
        modality_ids=torch.tensor(
            [-1 if example.modality is None else example.modality for example in examples],
            dtype=torch.int64,
        ),
        padding_mask=sample_ids < 0 if min(lengths) < width else None,
        num_padding=len(rows) * width - sum(lengths),
    )


def collate_prompt(conversation: Conversation, processor: Processor) -> VLMBatch:
    """One row with one prompt, open for the model's answer."""
    return collate(
        [[processor(conversation, for_generation=True)]],
        pad_id=processor.special_tokens.pad_id,
        merge_size=processor.image.merge_size,
    )


def _flatten(example: Example) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, their responses, whether they are visual placeholders; (tokens,) each.

    Responses are numbered from 0 in the order in which they begin, -1 where nothing is scored.
    """
    ids: list[int] = []
    responses: list[int] = []
    visual: list[bool] = []
    numbers: dict[int, int] = {}
    for span in example.spans:
        count = span.num_tokens
        ids += span.token_ids if isinstance(span, TextSpan) else [span.placeholder_id] * count
        response = -1
        if isinstance(span, TextSpan) and span.scored:
            response = numbers.setdefault(span.response, len(numbers))
        responses += [response] * count
        visual += [isinstance(span, VisionSpan)] * count
    return torch.tensor(ids), torch.tensor(responses), torch.tensor(visual)
