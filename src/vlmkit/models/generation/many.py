"""Answers to any number of requests, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer

from vlmkit.models.generation.answer import Answer
from vlmkit.models.generation.engine import Budget, Engine
from vlmkit.models.generation.request import Generated, Request
from vlmkit.models.qwen3vl import Qwen3VL


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where `generate_many` stands.

    Attributes:
        finished: answers that are complete.
        running: answers under way.
        new_tokens: made so far, stop ids left out.
        prompt_tokens: of the prompts that were read, or are about to be.
    """

    finished: int
    running: int
    new_tokens: int
    prompt_tokens: int


def generate_many(
    model: Qwen3VL,
    requests: Iterable[Request],
    *,
    tokenizer: Tokenizer | None = None,
    budget: Budget | None = None,
    lookahead: int = 64,
    on_finished: Callable[[int, Generated], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Generated]:
    """Answer many requests; when one is finished, another takes its place.

    Requests are read `lookahead` at a time and enter the longest first, so that rows under way are about
    equally long. Answers do not depend on that, up to rounding. Given an iterator, no more than
    `lookahead` prompts and those under way are in memory.

    Args:
        model: in evaluation mode.
        requests: in any order; those that share a prompt object should stand together.
        tokenizer: makes text; needed for stop strings.
        budget: how much at once.
        lookahead: requests that are read ahead and sorted.
        on_finished: called with a request's number and its answer, in the order in which they finish.
        on_progress: called after each step.

    Returns:
        The answers, in the order of the requests.

    Raises:
        ValueError: a request needs more than the budget, or a tokenizer that is not there; names its
            number. Answers that were finished before have been reported.
    """
    if lookahead < 1:
        raise ValueError(f"lookahead must be at least 1, got {lookahead}")
    engine = Engine(model, tokenizer=tokenizer, budget=budget)
    unread = enumerate(requests)
    numbers: dict[Answer, int] = {}
    results: dict[int, Generated] = {}
    new_tokens = prompt_tokens = 0
    while True:
        if not engine.waiting:
            window = list(islice(unread, lookahead))
            window.sort(key=lambda item: item[1].tokens, reverse=True)  # keeps the order of equals
            for number, request in window:
                try:
                    numbers[engine.add(request)] = number
                except ValueError as error:
                    raise ValueError(f"request {number}: {error}") from error
                prompt_tokens += request.prompt_tokens
        if not engine.waiting and not engine.running:
            break
        for answer in engine.step():
            new_tokens += len(answer.token_ids) if answer.finished else 0
            if answer.finished:
                number = numbers.pop(answer)
                results[number] = answer.result()
                if on_finished is not None:
                    on_finished(number, results[number])
        if on_progress is not None:
            under_way = sum(len(answer.token_ids) for answer in numbers)
            on_progress(
                Progress(
                    finished=len(results),
                    running=engine.running,
                    new_tokens=new_tokens + under_way,
                    prompt_tokens=prompt_tokens,
                )
            )
    return [results[number] for number in sorted(results)]
