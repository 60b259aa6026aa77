"""Packed conversations -> pictures with their captions, on the host."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from itertools import accumulate
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from vlmkit.batch import Movable, Segments, StepBatch, VisionInputs, VLMBatch
from vlmkit.language.captions import CaptionTokens
from vlmkit.language.text_encoder import CaptionInputs


@dataclass(frozen=True, kw_only=True)
class ImageTextPairs(Movable):
    """Pictures or videos of a micro-batch, each with its caption.

    Without any pair there is one blank picture with a caption of one token, and `num_pairs` is 0: the
    model visits all its parameters and keeps nothing, since under data parallelism every rank must
    touch every parameter in every step.
    """

    vision: VisionInputs
    pictures: Segments  # over the patches, one per pair; all frames of a video are one picture
    queries: Segments  # as many segments of length one, for attention pooling
    captions: CaptionInputs
    caption_keys: Tensor  # (pairs,) int64, equal where captions are
    source_ids: Tensor  # (pairs,) int64, number of the source of each pair
    num_pairs: int
    num_unpaired: int  # samples left out: no picture, several, or no text
    num_cut: int  # captions longer than the text tower reads


@dataclass(frozen=True, kw_only=True)
class PairedStep(StepBatch):
    """A step whose micro-batches have been read as pairs."""

    pairs: tuple[ImageTextPairs, ...]  # one for each micro-batch

    @classmethod
    def from_step(cls, step: StepBatch, captions: CaptionTokens, blank: VisionInputs) -> PairedStep:
        """Pair each micro-batch; see `pair`."""
        known: dict[str, Any] = {field.name: getattr(step, field.name) for field in fields(step)}
        pairs = tuple(pair(micro, captions, blank) for micro in step.micro_batches)
        return cls(**known, pairs=pairs)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Move the pairs; the packed rows stay on the host, where they were only counted."""
        moved = tuple(item.to(device, non_blocking=non_blocking) for item in self.pairs)
        return replace(self, pairs=moved)


def pair(batch: VLMBatch, captions: CaptionTokens, blank: VisionInputs) -> ImageTextPairs:
    """Read each sample with one picture or video and scored text as a pair.

    Args:
        batch: on the host.
        captions: scored tokens of a sample -> what the text tower reads.
        blank: stands in where there is no pair.

    Raises:
        ValueError: the batch was made for generation and has no labels.
    """
    if batch.scored_index is None or batch.labels is None or batch.sample_ids is None:
        raise ValueError("the batch has no labels: this one was made for generation")
    sample_ids = batch.sample_ids.flatten()
    scored: defaultdict[int, list[int]] = defaultdict(list)
    for sample, token in zip(
        sample_ids[batch.scored_index].tolist(),
        batch.labels.flatten()[batch.scored_index].tolist(),
        strict=True,
    ):
        scored[sample].append(token)
    pictures: defaultdict[int, list[int]] = defaultdict(list)
    for number, sample in enumerate(_samples_of_pictures(batch, sample_ids)):
        pictures[sample].append(number)

    chosen: list[tuple[int, int, tuple[int, ...]]] = []  # sample, picture, caption
    num_cut = 0
    for sample, numbers in pictures.items():
        caption = captions(scored[sample])
        if len(numbers) == 1 and caption.ids:
            chosen.append((sample, numbers[0], caption.ids))
            num_cut += caption.is_cut
    vision = blank
    if chosen:
        assert batch.vision is not None
        vision = _only(batch.vision, [picture for _, picture, _ in chosen])
    texts = [caption for _, _, caption in chosen]
    samples = torch.tensor([sample for sample, _, _ in chosen], dtype=torch.int64)
    unknown = torch.full((batch.num_samples,), -1)
    return ImageTextPairs(
        vision=vision,
        pictures=Segments.from_lengths(prod(grid) for grid in vision.grids),
        queries=Segments.from_lengths([1] * len(vision.grids)),
        captions=CaptionInputs.pack(texts or [(0,)]),
        caption_keys=torch.tensor([_key(text) for text in texts], dtype=torch.int64),
        source_ids=(unknown if batch.source_ids is None else batch.source_ids)[samples],
        num_pairs=len(chosen),
        num_unpaired=batch.num_samples - len(chosen),
        num_cut=num_cut,
    )


def _samples_of_pictures(batch: VLMBatch, sample_ids: Tensor) -> list[int]:
    """The sample of each grid: that of its first visual token."""
    if batch.vision is None:
        return []
    window = batch.vision.merge_size**2
    starts = accumulate((prod(grid) // window for grid in batch.vision.grids[:-1]), initial=0)
    found: list[int] = sample_ids[batch.visual_index[list(starts)]].tolist()
    return found


def _only(vision: VisionInputs, chosen: list[int]) -> VisionInputs:
    """Some of the pictures, in the order given."""
    if chosen == list(range(len(vision.grids))):
        return vision
    patches = vision.patches.split([prod(grid) for grid in vision.grids])
    return VisionInputs.from_grids(
        torch.cat([patches[i] for i in chosen]),
        [vision.grids[i] for i in chosen],
        vision.merge_size,
    )


def _key(caption: tuple[int, ...]) -> int:
    digest = blake2b(repr(caption).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
