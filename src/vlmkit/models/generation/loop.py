"""Answers to one prompt as a stream, and to a few prompts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from vlmkit.batch import VLMBatch
from vlmkit.models.generation.engine import Budget, Engine
from vlmkit.models.generation.prefill import check_prompt
from vlmkit.models.generation.request import Decoding, Generated, Request
from vlmkit.models.generation.sampling import Sampling
from vlmkit.models.qwen3vl import Qwen3VL


def generate(
    model: Qwen3VL,
    prompt: VLMBatch,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] | None = None,
    prefill_tokens: int | None = None,
) -> Iterator[int]:
    """Continue one prompt, token by token as they are made.

    Args:
        model: in evaluation mode.
        prompt: one row that holds one sample, without padding.
        max_new_tokens: at most so many tokens.
        sampling: how tokens are chosen; greedy by default.
        stop_ids: end the answer and are not yielded; the model's own by default.
        prefill_tokens: feed the prompt in pieces of so many tokens; None feeds it at once.

    Yields:
        Token ids.

    Raises:
        ValueError: the prompt is not a single sample, or a setting is out of range.
    """
    if max_new_tokens < 1:
        return
    engine = Engine(model, budget=_budget(1, prefill_tokens))
    answer = engine.add(
        Request(prompt=prompt, decoding=_decoding(max_new_tokens, sampling, stop_ids))
    )
    while not answer.finished:
        known = len(answer.token_ids)
        engine.step()
        yield from answer.token_ids[known:]


def generate_text(
    model: Qwen3VL,
    request: Request,
    tokenizer: Tokenizer,
    *,
    prefill_tokens: int | None = None,
) -> Iterator[str | Generated]:
    """Answer one request, with text as soon as it is sure to stay.

    Characters of several tokens come whole, and what may be the beginning of a stop string waits.

    Args:
        model: in evaluation mode.
        request: the prompt and the settings.
        tokenizer: decodes.
        prefill_tokens: feed the prompt in pieces of so many tokens; None feeds it at once.

    Yields:
        Pieces of text, none of them empty, and at last the whole answer.
    """
    engine = Engine(model, tokenizer=tokenizer, budget=_budget(1, prefill_tokens), streams=True)
    answer = engine.add(request)
    while not answer.finished:
        engine.step()
        if new := answer.release_text():
            yield new
    yield answer.result()


def generate_batch(
    model: Qwen3VL,
    prompts: Sequence[VLMBatch],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] | None = None,
    num_samples: int = 1,
    prefill_tokens: int | None = None,
) -> list[list[int]]:
    """Continue many prompts together; each is read once, whatever the number of its samples.

    All are under way at once; `generate_many` bounds that, and takes settings for each.

    Args:
        model: in evaluation mode.
        prompts: each one row that holds one sample, without padding.
        max_new_tokens: at most so many tokens in each answer.
        sampling: how tokens are chosen; greedy by default. Answer `i` draws from a stream of its own, made
            of the seed and `i`, so it does not depend on its neighbours.
        stop_ids: end an answer and are not part of it; the model's own by default.
        num_samples: answers to each prompt.
        prefill_tokens: feed the prompts in pieces of so many tokens; None feeds them at once.

    Returns:
        Token ids of the answers, those to one prompt next to each other.

    Raises:
        ValueError: a prompt is not a single sample, or a setting is out of range.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    rows = len(prompts) * num_samples
    for prompt in prompts:
        check_prompt(prompt)
    if not prompts or max_new_tokens < 1:
        return [[] for _ in range(rows)]
    engine = Engine(model, budget=_budget(rows, prefill_tokens))
    decoding = _decoding(max_new_tokens, sampling, stop_ids)
    answers = [
        engine.add(Request(prompt=prompt, decoding=decoding, sample=i * num_samples + j))
        for i, prompt in enumerate(prompts)
        for j in range(num_samples)
    ]
    while engine.running or engine.waiting:
        engine.step()
    return [answer.token_ids for answer in answers]


def _decoding(
    max_new_tokens: int, sampling: Sampling | None, stop_ids: Sequence[int] | None
) -> Decoding:
    return Decoding(
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(),
        stop_ids=None if stop_ids is None else tuple(stop_ids),
    )


def _budget(rows: int, prefill_tokens: int | None) -> Budget:
    return Budget(max_rows=rows, kv_tokens=None, prefill_tokens=prefill_tokens)
