"""Feeding prompts to the model: many as segments of one line, in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from vlmkit.batch import Segments, VisionInputs, VisualTokens, VLMBatch
from vlmkit.language.kv_cache import KVCache
from vlmkit.language.kv_line import KVLine
from vlmkit.models.qwen3vl import Qwen3VL


def prefill(
    model: Qwen3VL,
    prompts: Sequence[VLMBatch],
    cache: KVCache,
    rows: Sequence[int],
    piece_tokens: int | None = None,
) -> Tensor:
    """Read prompts into rows of a cache.

    Prompts stand one behind the other in a line, which is cut into pieces wherever the number of tokens
    says, within a picture too. Images and frames are encoded once, not long before they are needed.

    Args:
        model: in evaluation mode.
        prompts: each one row that holds one sample, without padding; on any device.
        cache: has given a slot to each (`KVCache.enter`).
        rows: of the cache, one per prompt.
        piece_tokens: largest piece, and most visual tokens that are encoded in one call (a single frame
            or image may have more); None reads all at once.

    Returns:
        (prompts, dim) hidden states of the last tokens, after the final norm.

    Raises:
        ValueError: `piece_tokens` is below 1, or a prompt is not a single sample.
    """
    if piece_tokens is not None and piece_tokens < 1:
        raise ValueError(f"prefill_tokens must be at least 1, got {piece_tokens}")
    line = pack_prompts(prompts)
    device = model.decoder.embedding.weight.device
    visual = VisualFeed(model, line, piece_tokens)
    last = []
    for piece in pieces(line.segments.lengths, piece_tokens):
        at = slice(piece.start, piece.start + sum(piece.lengths))
        batch = VLMBatch(
            input_ids=line.input_ids[:, at].to(device),
            position_ids=line.position_ids[..., at].to(device),
            segments=Segments.from_lengths(piece.lengths).to(device),
            visual_index=torch.empty(0, dtype=torch.int64, device=device),
        )
        past = KVLine(cache, [rows[prompt] for prompt in piece.prompts])
        hidden = model(batch, visual=visual.window(at.start, at.stop), cache=past).hidden[0]
        ends = [end - 1 for end in accumulate(piece.lengths)]
        last.append(hidden[ends if piece.completes_last else ends[:-1]])
    return torch.cat(last)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a line of prompts.

    Attributes:
        start: its first token.
        prompts: those it has tokens of.
        lengths: tokens of each.
        completes_last: whether it has the last token of the last of them; it has that of all others.
    """

    start: int
    prompts: range
    lengths: tuple[int, ...]
    completes_last: bool


def pieces(lengths: Sequence[int], most: int | None) -> Iterator[Piece]:
    """Cut a line of prompts into pieces of `most` tokens; None leaves it whole."""
    stops = list(accumulate(lengths))
    size = most or stops[-1]
    prompt = 0
    for start in range(0, stops[-1], size):
        end = min(start + size, stops[-1])
        first, parts, place = prompt, [], start
        while place < end:
            parts.append(min(stops[prompt], end) - place)
            place += parts[-1]
            prompt += place == stops[prompt]
        yield Piece(
            start=start,
            prompts=range(first, first + len(parts)),
            lengths=tuple(parts),
            completes_last=stops[first + len(parts) - 1] == end,
        )


class VisualFeed:
    """Encodes the media of a line as they are needed, a bounded number of frames at a time."""

    def __init__(self, model: Qwen3VL, line: VLMBatch, most: int | None) -> None:
        """Prepare; nothing is encoded yet.

        Args:
            model: encodes.
            line: placeholders in the order of their features.
            most: visual tokens per call; None encodes all at once. A frame is never cut.
        """
        self._model, self._line, self._most = model, line, most
        self._device = model.decoder.embedding.weight.device
        self._index = line.visual_index.tolist()
        self._ready = no_visual(model)  # encoded, and not yet behind
        self._frame = self._token = 0  # next ones to be encoded

    def window(self, start: int, stop: int) -> VisualTokens:
        """What stands at tokens start .. stop - 1 of the line, counted from `start`; windows follow."""
        needed = sum(place < stop for place in self._index[self._token :])
        while needed > 0:
            before = self._token
            self._encode()
            needed -= self._token - before
        found = self._ready.window(start, stop)
        self._ready = _kept(self._ready, self._ready.index >= stop)
        return found

    def _encode(self) -> None:
        vision = self._line.vision
        assert vision is not None
        counts = [
            length // vision.merge_size**2 for length in vision.segments.lengths[self._frame :]
        ]
        fitting = len(counts)
        if self._most is not None:
            fitting = sum(reached <= self._most for reached in accumulate(counts))
        taken = max(fitting, 1)
        frames, tokens = self._frame + taken, self._token + sum(counts[:taken])
        part = vision.frames(self._frame, frames).to(self._device)
        index = self._line.visual_index[self._token : tokens]
        made = self._model.encode_vision(
            replace(self._line, vision=part, visual_index=index.to(self._device))
        )
        self._frame, self._token = frames, tokens
        self._ready = VisualTokens(
            index=torch.cat([self._ready.index, made.index]),
            embeddings=torch.cat([self._ready.embeddings.to(made.embeddings), made.embeddings]),
            levels=tuple(
                torch.cat([kept.to(new), new])
                for kept, new in zip(self._ready.levels, made.levels, strict=True)
            ),
        )


def no_visual(model: Qwen3VL) -> VisualTokens:
    """The visual tokens of a text without any; the encoder is not asked."""
    weight = model.decoder.embedding.weight
    nothing = weight.new_empty(0, model.decoder.hidden_dim)
    return VisualTokens(
        index=torch.empty(0, dtype=torch.int64, device=weight.device),
        embeddings=nothing,
        levels=tuple(nothing for _ in model.fusion.tapped_blocks),
    )


def _kept(visual: VisualTokens, which: Tensor) -> VisualTokens:
    return VisualTokens(
        index=visual.index[which],
        embeddings=visual.embeddings[which],
        levels=tuple(level[which] for level in visual.levels),
    )


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


def next_position(prompt: VLMBatch) -> int:
    """Position of the token that follows a prompt, the same on all three axes."""
    return int(prompt.position_ids.amax()) + 1


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
