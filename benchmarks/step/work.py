"""Samples as transformers' processor would hand them over, and the same samples packed for vlmkit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vlmkit.batch import IGNORED_LABEL, Segments, VLMBatch
from vlmkit.checkpoint.parity_cases import Case, Image, Inputs, InputSpec, Part, Video, make_inputs
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.models.qwen3vl import Qwen3VL


@dataclass(frozen=True)
class Sample:
    """A question with pictures and its answer, the last `answer` tokens, which are supervised."""

    prompt: Sequence[Part]
    answer: int


RAGGED = (  # texts, dialogues about one or two pictures, a clip; lengths spread as those of real data
    Sample([58], 32),
    Sample([30, Image(6, 6), 22], 30),
    Sample([100], 50),
    Sample([24, Image(8, 8), 40], 40),
    Sample([26, Image(10, 9), 38], 44),
    Sample([30, Image(12, 10), 40], 48),
    Sample([28, Image(8, 8), 40, Image(9, 8), 42], 60),
    Sample([40, Video(8, 5, 5), 64], 90),
)


def padded_inputs(samples: Sequence[Sample], model: Qwen3VL, seed: int = 0) -> Inputs:
    """Rows padded on the right to the longest, with labels in place, as its collators make them."""
    rows = [[*sample.prompt, sample.answer] for sample in samples]
    inputs = make_inputs(Case(rows=rows), InputSpec.of(model), seed)
    labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
    for i, sample in enumerate(samples):
        stop = int(inputs["attention_mask"][i].sum())
        answer = slice(stop - sample.answer, stop)
        labels[i, answer] = inputs["input_ids"][i, answer]
    return {**inputs, "labels": labels}


def packed_batch(inputs: Inputs, model: Qwen3VL) -> VLMBatch:
    """The rows' real tokens in one row, as vlmkit's data path packs them."""
    batch = batch_from_hf(inputs, model.special_tokens, model.merger.merge_size)
    real = inputs["attention_mask"].bool()
    kept = real.flatten()
    place = kept.cumsum(0) - 1
    assert batch.labels is not None
    assert batch.scored_index is not None
    assert batch.sample_ids is not None
    return replace(
        batch,
        input_ids=batch.input_ids.flatten()[kept][None],
        position_ids=batch.position_ids.flatten(1)[:, kept][:, None],
        segments=Segments.from_lengths(real.sum(1).tolist()),
        visual_index=place[batch.visual_index],
        labels=batch.labels.flatten()[kept][None],
        scored_index=place[batch.scored_index],
        sample_ids=batch.sample_ids.flatten()[kept][None],
        padding_mask=None,
        num_padding=0,
    )


def described(inputs: Inputs) -> str:
    """Sizes of a batch in words."""
    mask, scored = inputs["attention_mask"].bool(), inputs["labels"] != IGNORED_LABEL
    lengths = mask.sum(1).tolist()
    patches = sum(
        len(inputs[name]) for name in ("pixel_values", "pixel_values_videos") if name in inputs
    )
    tokens = sum(lengths)
    return (
        f"{len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens, {tokens} together "
        f"({tokens / mask.numel():.0%} of the padded batch), {int(scored.sum())} supervised "
        f"({int(scored.sum()) / tokens:.0%}), {patches} patches"
    )
