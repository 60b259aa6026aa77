"""Prefill, decoding loop and sampling for one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmkit.batch import Segments, VisualTokens, VLMBatch
from vlmkit.language.kv_cache import KVCache
from vlmkit.models.qwen3vl import Qwen3VL


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only the k most probable tokens; 0 keeps all.
        top_p: only the smallest set of most probable tokens that reaches this probability.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """Choose a token.

        Args:
            logits: (vocab,), on any device.
            generator: on the CPU.
        """
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits).cpu(), 1, generator=generator))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(vocab,) distribution that tokens are drawn from: temperature, then top-k, then top-p."""
        scaled = logits.float() / self.temperature
        if 0 < self.top_k < len(scaled):
            scaled = scaled.masked_fill(scaled < scaled.topk(self.top_k).values[-1], -torch.inf)
        if self.top_p < 1:
            ordered, order = scaled.softmax(-1).sort(descending=True, stable=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p  # the set without this one suffices
            scaled = scaled.masked_fill(
                torch.zeros_like(beyond).scatter(0, order, beyond), -torch.inf
            )
        return scaled.softmax(-1)


@torch.inference_mode()
def generate(
    model: Qwen3VL,
    prompt: VLMBatch,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] | None = None,
    prefill_chunk: int | None = None,
) -> Iterator[int]:
    """Continue one prompt, token by token as they are made.

    Args:
        model: in evaluation mode.
        prompt: one row that holds one sample, without padding.
        max_new_tokens: at most so many tokens.
        sampling: how tokens are chosen; greedy by default.
        stop_ids: end the answer and are not yielded; the model's own by default.
        prefill_chunk: feed the prompt in pieces of so many tokens; None feeds it at once.

    Yields:
        Token ids.

    Raises:
        ValueError: the prompt is not a single sample.
    """
    if prompt.segments.lengths != (prompt.input_ids.shape[1],):
        raise ValueError(
            f"generation takes one sample in one row, got segments {prompt.segments.lengths} in "
            f"{tuple(prompt.input_ids.shape)} tokens"
        )
    sampling = sampling or Sampling()
    stops = set(model.special_tokens.stop_ids if stop_ids is None else stop_ids)
    generator = torch.Generator().manual_seed(sampling.seed)
    cache = model.decoder.new_cache(1, prompt.input_ids.shape[1] + max_new_tokens)
    hidden = prefill(model, prompt, cache, prefill_chunk)
    position = int(prompt.position_ids.max()) + 1
    for step in range(max_new_tokens):
        token = sampling.pick(model.decoder.logits(hidden[0, -1]), generator)
        if token in stops:
            return
        yield token
        if step + 1 < max_new_tokens:
            hidden = decode_step(model, token, position + step, cache)


def prefill(model: Qwen3VL, prompt: VLMBatch, cache: KVCache, chunk: int | None = None) -> Tensor:
    """Feed a prompt; media are encoded once, whatever the chunks.

    Returns:
        (1, tokens of the last piece, dim) hidden states.
    """
    visual = model.encode_vision(prompt)
    length = prompt.input_ids.shape[1]
    step = chunk or length
    hidden = torch.empty(0)
    for start in range(0, length, step):
        stop = min(start + step, length)
        piece = _text_row(prompt.input_ids[:, start:stop], prompt.position_ids[..., start:stop])
        hidden = model(piece, visual=visual.window(start, stop), cache=cache).hidden
    return hidden


def decode_step(model: Qwen3VL, token: int, position: int, cache: KVCache) -> Tensor:
    """Feed one token at one position on all three axes; (1, 1, dim) hidden state."""
    device = model.decoder.embedding.weight.device
    batch = _text_row(
        torch.tensor([[token]], device=device), torch.full((3, 1, 1), position, device=device)
    )
    none = VisualTokens(
        index=batch.visual_index,
        embeddings=torch.empty(0, model.decoder.hidden_dim, device=device),
        levels=tuple(
            torch.empty(0, model.decoder.hidden_dim, device=device)
            for _ in model.fusion.tapped_blocks
        ),
    )
    hidden: Tensor = model(batch, visual=none, cache=cache).hidden
    return hidden


def _text_row(input_ids: Tensor, position_ids: Tensor) -> VLMBatch:
    """One row whose visual tokens, if any, are handed to the model separately."""
    return VLMBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=Segments.from_lengths([input_ids.shape[1]]).to(input_ids.device),
        visual_index=torch.empty(0, dtype=torch.int64, device=input_ids.device),
    )
