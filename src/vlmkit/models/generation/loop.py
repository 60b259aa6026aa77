"""Decoding loops: a stream of tokens for one prompt, and whole answers for many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlmkit.batch import VLMBatch
from vlmkit.models.generation.prefill import check_prompt, pack_prompts, prefill
from vlmkit.models.generation.sampling import Sampling, row_generator
from vlmkit.models.generation.step import DecodeStep
from vlmkit.models.qwen3vl import Qwen3VL


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
    check_prompt(prompt)
    sampling = sampling or Sampling()
    stops = set(model.special_tokens.stop_ids if stop_ids is None else stop_ids)
    generator = torch.Generator().manual_seed(sampling.seed)
    cache = model.decoder.new_cache(1, prompt.input_ids.shape[1] + max_new_tokens)
    hidden = prefill(model, prompt, cache, prefill_chunk)[:, -1]
    step = DecodeStep(model, max_new_tokens)
    positions = next_positions(prompt)
    for made in range(max_new_tokens):
        token = sampling.pick(step.logits(hidden)[0], generator)
        if token in stops:
            return
        yield token
        if made + 1 < max_new_tokens:
            hidden = step(torch.tensor([token], device=hidden.device), positions + made, cache)


@torch.inference_mode()
def generate_batch(
    model: Qwen3VL,
    prompts: Sequence[VLMBatch],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] | None = None,
    num_samples: int = 1,
) -> list[list[int]]:
    """Continue many prompts together; each is read once, whatever the number of its samples.

    Prompts are prefilled as segments of one line, with one call of the vision encoder. A row that has
    stopped leaves the batch.

    Args:
        model: in evaluation mode.
        prompts: each one row that holds one sample, without padding.
        max_new_tokens: at most so many tokens in each answer.
        sampling: how tokens are chosen; greedy by default. Answer `i` draws from a stream of its own, made
            of the seed and `i`, so it does not depend on its neighbours.
        stop_ids: end an answer and are not part of it; the model's own by default.
        num_samples: answers to each prompt.

    Returns:
        Token ids of the answers, those to one prompt next to each other.

    Raises:
        ValueError: a prompt is not a single sample, or `num_samples` is below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not prompts or max_new_tokens < 1:
        return [[] for _ in range(len(prompts) * num_samples)]
    sampling = sampling or Sampling()
    stops = set(model.special_tokens.stop_ids if stop_ids is None else stop_ids)
    line = pack_prompts(prompts)
    cache = model.decoder.new_cache(len(prompts), line.segments.max_length + max_new_tokens)
    hidden = model(line, cache=cache).hidden[0, line.segments.cu_seqlens[1:] - 1]  # (prompts, dim)
    positions = next_positions(line)
    origin = [prompt for prompt in range(len(prompts)) for _ in range(num_samples)]
    if num_samples > 1:
        cache.select(origin)
        hidden, positions = hidden[origin], positions[origin]

    step = DecodeStep(model, max_new_tokens)
    answers: list[list[int]] = [[] for _ in origin]
    generators = [row_generator(sampling.seed, row) for row in range(len(origin))]
    active = list(range(len(origin)))
    for made in range(max_new_tokens):
        logits = step.logits(hidden)
        picked = sampling.pick_rows(logits, [generators[row] for row in active])
        going = [i for i, token in enumerate(picked) if token not in stops]
        for i in going:
            answers[active[i]].append(picked[i])
        if not going or made + 1 == max_new_tokens:
            break
        if len(going) < len(active):
            cache.select(going)
            active, positions = [active[i] for i in going], positions[going]
        tokens = torch.tensor([picked[i] for i in going], device=hidden.device)
        hidden = step(tokens, positions + made, cache)
    return answers


def next_positions(line: VLMBatch) -> Tensor:
    """(segments,) position of the token that follows each segment of a line."""
    parts = line.position_ids[:, 0].split(line.segments.lengths, dim=-1)
    return torch.stack([part.amax() for part in parts]) + 1
