"""Feeding prompts to the model: one in pieces, or many as segments of one line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from vlmkit.batch import Segments, VisionInputs, VLMBatch
from vlmkit.language.kv_cache import KVCache
from vlmkit.models.qwen3vl import Qwen3VL


def prefill(model: Qwen3VL, prompt: VLMBatch, cache: KVCache, chunk: int | None = None) -> Tensor:
    """Feed one prompt; media are encoded once, whatever the chunks.

    Returns:
        (1, tokens of the last piece, dim) hidden states.
    """
    visual = model.encode_vision(prompt)
    length = prompt.input_ids.shape[1]
    step = chunk or length
    hidden = torch.empty(0)
    for start in range(0, length, step):
        stop = min(start + step, length)
        piece = text_row(prompt.input_ids[:, start:stop], prompt.position_ids[..., start:stop])
        hidden = model(piece, visual=visual.window(start, stop), cache=cache).hidden
    return hidden


def check_prompt(prompt: VLMBatch) -> None:
    """Make sure that a prompt is one sample in one row, without padding.

    Raises:
        ValueError: names the segments.
    """
    if prompt.segments.lengths != (prompt.input_ids.shape[1],):
        raise ValueError(
            f"generation takes one sample in one row, got segments {prompt.segments.lengths} in "
            f"{tuple(prompt.input_ids.shape)} tokens"
        )


def pack_prompts(prompts: Sequence[VLMBatch]) -> VLMBatch:
    """One row with one segment per prompt, and the media of all in their order.

    Args:
        prompts: each one row that holds one sample, without padding, all on one device.

    Raises:
        ValueError: there is none, or one is not a single sample.
    """
    if not prompts:
        raise ValueError("no prompts to pack")
    for prompt in prompts:
        check_prompt(prompt)
    lengths = [prompt.input_ids.shape[1] for prompt in prompts]
    offsets = accumulate(lengths, initial=0)
    device = prompts[0].input_ids.device
    index = [prompt.visual_index + offset for prompt, offset in zip(prompts, offsets, strict=False)]
    return VLMBatch(
        input_ids=torch.cat([prompt.input_ids for prompt in prompts], dim=1),
        position_ids=torch.cat([prompt.position_ids for prompt in prompts], dim=2),
        segments=Segments.from_lengths(lengths).to(device),
        visual_index=torch.cat(index),
        vision=_join([prompt.vision for prompt in prompts if prompt.vision is not None]),
    )


def text_row(input_ids: Tensor, position_ids: Tensor) -> VLMBatch:
    """One row whose visual tokens, if any, are handed to the model separately."""
    return VLMBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=Segments.from_lengths([input_ids.shape[1]]).to(input_ids.device),
        visual_index=torch.empty(0, dtype=torch.int64, device=input_ids.device),
    )


def _join(parts: Sequence[VisionInputs]) -> VisionInputs | None:
    if len(parts) <= 1:
        return parts[0] if parts else None
    frames = chain.from_iterable(part.segments.lengths for part in parts)
    patches = torch.cat([part.patches for part in parts])
    return VisionInputs(
        patches=patches,
        grids=tuple(chain.from_iterable(part.grids for part in parts)),
        coords=torch.cat([part.coords for part in parts]),
        segments=Segments.from_lengths(frames).to(patches.device),
        merge_size=parts[0].merge_size,
    )
