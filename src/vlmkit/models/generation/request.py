"""What is asked of the generator, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from vlmkit.batch import VLMBatch
from vlmkit.models.generation.prefill import check_prompt
from vlmkit.models.generation.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is made, and where it ends.

    Attributes:
        max_new_tokens: at most so many tokens.
        sampling: how tokens are chosen; greedy by default.
        stop: the answer ends before the first of these strings. They are looked for in decoded text,
            in which special tokens are left out.
        stop_ids: end the answer and are not part of it; None takes the model's own.
        top_logprobs: None gives no log-probabilities, n those of the chosen and the n most probable tokens.
    """

    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check the settings; lists become tuples.

        Raises:
            ValueError: names the setting and its value.
        """
        _check_whole("max_new_tokens", self.max_new_tokens, least=1)
        if self.top_logprobs is not None:
            _check_whole("top_logprobs", self.top_logprobs, least=0)
        object.__setattr__(self, "stop", _checked("stop", self.stop, str))
        if self.stop_ids is not None:
            object.__setattr__(self, "stop_ids", _checked("stop_ids", self.stop_ids, int))


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One answer that is wanted.

    Requests that hold the same prompt object and stand next to each other read it once.

    Attributes:
        prompt: one row that holds one sample, without padding.
        decoding: how it is answered.
        sample: number of the answer among those with one seed; each number has its own stream of draws.
    """

    prompt: VLMBatch
    decoding: Decoding
    sample: int = 0

    def __post_init__(self) -> None:
        """Check the prompt.

        Raises:
            ValueError: it is not a single sample, or `sample` is negative.
        """
        check_prompt(self.prompt)
        _check_whole("sample", self.sample, least=0)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.prompt.input_ids.shape[1]

    @property
    def tokens(self) -> int:
        """Places in the cache that the longest answer needs; its last token needs none."""
        return self.prompt_tokens + self.decoding.max_new_tokens - 1

    def samples(self, number: int) -> list[Request]:
        """So many answers to one prompt, which is read once.

        Raises:
            ValueError: `number` is below 1.
        """
        _check_whole("the number of samples", number, least=1)
        return [replace(self, sample=self.sample + i) for i in range(number)]


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")


def _checked(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    what = {str: "strings, none of them empty", int: "token ids, none of them negative"}[kind]
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be a list of {what}; got {values!r}")
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool) or value == "":
            raise ValueError(f"{name} must be a list of {what}; got {list(values)}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name} must be a list of {what}; got {list(values)}")
    return tuple(values)


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # a stop id
    LENGTH = "length"  # max_new_tokens
    STOP_STRING = "stop_string"


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """Natural logarithms of probabilities, from logits in float32.

    They are the model's own: before penalties, temperature and filters, as vLLM gives them by default.

    Attributes:
        logprob: of the chosen token.
        top: the most probable tokens and theirs, the largest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Generated:
    """An answer.

    Attributes:
        token_ids: without a stop id; the last ones may belong to a stop string.
        text: without special tokens, and without a stop string; None if there was no tokenizer.
        finish_reason: why it ended.
        stopped_by: the stop id or stop string.
        logprobs: one per token id, if they were asked for.
    """

    token_ids: tuple[int, ...]
    text: str | None = None
    finish_reason: FinishReason
    stopped_by: int | str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
