"""How likely given answers are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmkit.batch import Segments, VLMBatch
from vlmkit.language.kv_line import KVBranches
from vlmkit.models.generation.prefill import next_position, no_visual, prefill
from vlmkit.models.qwen3vl import Qwen3VL

HEAD_ROWS = 512
"""Tokens whose logits are made at once."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-likelihood of one answer, given the prompt.

    Attributes:
        logprobs: natural logarithm of each token's probability, from logits in float32.
        greedy: whether each token is the most probable one, so that greedy decoding would begin so.
    """

    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """Of the whole answer."""
        return sum(self.logprobs)

    @property
    def mean(self) -> float:
        """Per token, for answers of different length."""
        return self.total / len(self.logprobs)


@torch.inference_mode()
def score(
    model: Qwen3VL,
    prompt: VLMBatch,
    answers: Sequence[Sequence[int]],
    *,
    prefill_tokens: int | None = 4096,
) -> list[Score]:
    """Log-likelihood of given continuations of a prompt, which is read once for all.

    Args:
        model: in evaluation mode.
        prompt: one row that holds one sample, without padding.
        answers: token ids of each continuation. A stop id counts only where it is given.
        prefill_tokens: at most so many tokens in one forward pass, where answers count with the
            prompt that they look at (one answer always fits); None sets no limit.

    Returns:
        One score per answer.

    Raises:
        ValueError: the prompt is not a single sample, an answer is empty or has an id that is none.
    """
    vocab = model.decoder.vocab_size
    for number, answer in enumerate(answers):
        if not answer:
            raise ValueError(f"answer {number} is empty: it has no likelihood")
        if not all(0 <= token < vocab for token in answer):
            raise ValueError(
                f"answer {number} holds ids outside the vocabulary of {vocab}: {list(answer)}"
            )
    if not answers:
        return []
    length = prompt.input_ids.shape[1]
    cache = model.decoder.new_cache(0, length, slots=1)
    (row,) = cache.enter([length])
    first = prefill(model, [prompt], cache, [row], prefill_tokens)  # (1, dim)
    scores: list[Score] = []
    for group in _groups(answers, length, prefill_tokens):
        lines = _continued(model, KVBranches(cache), group, next_position(prompt))
        hidden = torch.cat([part for line in lines for part in (first, line)])
        ids = torch.tensor([token for answer in group for token in answer], device=hidden.device)
        logprobs, best = _logprobs(model, hidden, ids)
        sizes = [len(answer) for answer in group]
        scores += [
            Score(logprobs=tuple(part.tolist()), greedy=bool(hit.all()))
            for part, hit in zip(logprobs.split(sizes), best.split(sizes), strict=True)
        ]
    return scores


def _groups(
    answers: Sequence[Sequence[int]], past: int, most: int | None
) -> Iterator[list[Sequence[int]]]:
    """Answers that are fed together."""
    group: list[Sequence[int]] = []
    held = 0
    for answer in answers:
        size = past + len(answer) - 1
        if group and most is not None and held + size > most:
            yield group
            group, held = [], 0
        group.append(answer)
        held += size
    yield group


def _continued(
    model: Qwen3VL, past: KVBranches, answers: Sequence[Sequence[int]], position: int
) -> list[Tensor]:
    """(tokens - 1, dim) hidden states of each answer, all tokens but the last being fed."""
    weight = model.decoder.embedding.weight
    fed = [list(answer[:-1]) for answer in answers]
    nothing = weight.new_empty(0, model.decoder.hidden_dim)
    lengths = [len(ids) for ids in fed]
    if not any(lengths):
        return [nothing] * len(fed)
    device = weight.device
    positions = [position + i for ids in fed for i in range(len(ids))]
    batch = VLMBatch(
        input_ids=torch.tensor([[token for ids in fed for token in ids]], device=device),
        position_ids=torch.tensor(positions, device=device).expand(3, 1, -1),
        segments=Segments.from_lengths(lengths).to(device),
        visual_index=torch.empty(0, dtype=torch.int64, device=device),
    )
    hidden = model(batch, visual=no_visual(model), cache=past).hidden[0]
    return list(hidden.split(lengths))


def _logprobs(model: Qwen3VL, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens,) log-probabilities of `ids`, and whether they are the most probable ones."""
    found, best = [], []
    for part, chosen in zip(hidden.split(HEAD_ROWS), ids.split(HEAD_ROWS), strict=True):
        logits = model.decoder.logits(part).float()
        found.append(logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0])
        best.append(logits.argmax(-1) == chosen)
    return torch.cat(found), torch.cat(best)
