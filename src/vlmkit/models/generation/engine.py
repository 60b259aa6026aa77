"""Many answers at once: rows leave when they are finished, and others take their places."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlmkit.language.kv_cache import KVCache
from vlmkit.models.generation.answer import Answer
from vlmkit.models.generation.choice import Choice, Chooser
from vlmkit.models.generation.prefill import next_position, prefill
from vlmkit.models.generation.request import Request, TokenLogprob
from vlmkit.models.generation.sampling import History, row_generator
from vlmkit.models.generation.step import DecodeStep
from vlmkit.models.qwen3vl import Qwen3VL

WORTH_A_MOVE = 1.25
"""By how much more rows must fit before the cache is laid out anew for rows that have become shorter."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is done at once.

    Attributes:
        max_rows: answers under way.
        kv_tokens: places of the cache, those that are reserved included: rows times the places of the
            longest, prompt and `max_new_tokens`, and about an eighth more. None sets no limit.
        prefill_tokens: tokens of prompts in one forward pass, and visual tokens in one call of the
            encoder. None sets no limit.
    """

    max_rows: int = 64
    kv_tokens: int | None = 32_768
    prefill_tokens: int | None = 4096

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name != "max_rows":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name} must be a whole number from 1, got {value!r}")

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether so many rows of at most so many tokens may be under way."""
        within = self.kv_tokens is None or rows * columns_for(rows, tokens) <= self.kv_tokens
        return rows <= self.max_rows and within


def columns_for(rows: int, tokens: int) -> int:
    """Columns of a cache whose longest row has `tokens`; the spare ones make moves to the left rare."""
    return tokens if rows == 1 else tokens + tokens // 8 + 8


@dataclass(frozen=True, kw_only=True)
class _Row:
    answer: Answer
    position: int  # of the answer's first token
    chooser: Chooser

    @property
    def next_position(self) -> int:
        """Of the token that was made last and is fed next."""
        return self.position + len(self.answer.token_ids) - 1


class Engine:
    """Answers requests, one token each per step, as many at once as the budget allows.

    Waiting requests enter in their order, some at a time, as soon as there is room. An answer does not
    depend on which others are under way, up to rounding. Weights must not change while it lives.
    """

    def __init__(
        self,
        model: Qwen3VL,
        *,
        tokenizer: Tokenizer | None = None,
        budget: Budget | None = None,
        streams: bool = False,
    ) -> None:
        """Hold the parts; memory is taken with the first request.

        Args:
            model: in evaluation mode.
            tokenizer: makes text; needed for stop strings.
            budget: how much at once.
            streams: whether text is wanted while answers are written.

        Raises:
            ValueError: there is no tokenizer to stream text with.
        """
        if streams and tokenizer is None:
            raise ValueError("text can be streamed with a tokenizer only")
        self.model, self.budget = model, budget or Budget()
        self._tokenizer, self._streams = tokenizer, streams
        self._waiting: deque[Answer] = deque()
        self._rows: list[_Row] = []
        self._tokens: list[int] = []  # of the rows, made and not yet fed
        self._cache: KVCache | None = None
        self._decode: DecodeStep | None = None
        self._choice = Choice([])
        self._positions: Tensor | None = None  # of the tokens fed last; None after a change of rows
        self._looked = False  # whether it is known that nobody can enter

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._rows)

    def add(self, request: Request) -> Answer:
        """Queue a request.

        Returns:
            The answer, which grows with each `step`.

        Raises:
            ValueError: it needs more than the budget, or a tokenizer that is not there.
        """
        if not self.budget.fits(1, request.tokens):
            raise ValueError(
                f"a prompt of {request.prompt_tokens} tokens with "
                f"max_new_tokens={request.decoding.max_new_tokens} needs {request.tokens} places of "
                f"the cache; kv_tokens is {self.budget.kv_tokens}"
            )
        if request.decoding.stop and self._tokenizer is None:
            raise ValueError(f"stop={list(request.decoding.stop)} needs a tokenizer")
        answer = Answer(request, self.model.special_tokens.stop_ids, self._tokenizer, self._streams)
        self._waiting.append(answer)
        self._looked = False
        return answer

    @torch.inference_mode()
    def cancel(self, answer: Answer) -> None:
        """Give up an answer; nothing happens if it is finished."""
        if answer in self._waiting:
            self._waiting.remove(answer)
        self._leave([i for i, row in enumerate(self._rows) if row.answer is answer])

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Make one token for every row, after letting in who fits.

        Returns:
            The answers that got one, those that are now finished among them.
        """
        parts = [self._feed(), self._admit()]
        hidden = [part for part in parts if part is not None]
        if not hidden:
            return []
        assert self._decode is not None
        logits = self._decode.logits(torch.cat(hidden) if len(hidden) > 1 else hidden[0])
        picked = self._choice(logits)
        logprobs = self._logprobs(logits, picked)
        rows = self._rows
        done = [
            i
            for i, (row, token, logprob) in enumerate(zip(rows, picked, logprobs, strict=True))
            if row.answer.add(token, logprob)
        ]
        self._tokens = picked
        self._leave(done)
        return [row.answer for row in rows]

    def _feed(self) -> Tensor | None:
        """(rows, dim) hidden states of the tokens made last."""
        if not self._rows:
            return None
        assert self._cache is not None
        assert self._decode is not None
        device = self.model.decoder.embedding.weight.device
        if self._positions is None:
            positions = [row.next_position for row in self._rows]
            self._positions = torch.tensor(positions, device=device)
        else:
            self._positions = self._positions + 1
        self._cache.make_room(1)
        return self._decode(torch.tensor(self._tokens, device=device), self._positions, self._cache)

    def _leave(self, done: Collection[int]) -> None:
        if not done:
            return
        assert self._cache is not None
        order = self._cache.drop(set(done))
        self._tokens = [self._tokens[i] for i in order]
        self._change([self._rows[i] for i in order])
        self._looked = False

    def _change(self, rows: list[_Row]) -> None:
        self._rows, self._positions = rows, None
        self._choice = Choice([row.chooser for row in rows])

    def _admit(self) -> Tensor | None:
        """(entered rows, dim) hidden states of their prompts' last tokens."""
        if self._looked or not self._waiting:
            return None
        self._looked = True
        entering = self._fitting()
        few = len(entering) < max(1, self.running // 8) and len(entering) < self.waiting
        if not entering or (self._rows and few):
            return None
        self._prepare(entering)
        for _ in entering:
            self._waiting.popleft()

        assert self._cache is not None
        requests = [answer.request for answer in entering]
        numbers = self._cache.enter([request.prompt_tokens for request in requests])
        groups = [
            list(members)
            for _, members in groupby(
                zip(numbers, requests, strict=True), key=lambda member: id(member[1].prompt)
            )
        ]
        hidden = prefill(
            self.model,
            [group[0][1].prompt for group in groups],
            self._cache,
            [group[0][0] for group in groups],
            self.budget.prefill_tokens,
        )
        if len(groups) < len(requests):
            for group in groups:
                first, *others = (number for number, _ in group)
                self._cache.copy_row(first, others)
            counts = torch.tensor([len(group) for group in groups], device=hidden.device)
            hidden = hidden.repeat_interleave(counts, dim=0)
        self._change([*self._rows, *(self._row(answer) for answer in entering)])
        return hidden

    def _row(self, answer: Answer) -> _Row:
        request, history = answer.request, None
        sampling = request.decoding.sampling
        if sampling.penalizes:
            device = self.model.decoder.embedding.weight.device
            ids = request.prompt.input_ids[0].to(device)
            history = History(ids, room=request.decoding.max_new_tokens)
        generator = row_generator(sampling.seed, request.sample)
        return _Row(
            answer=answer,
            position=next_position(request.prompt),
            chooser=Chooser(sampling=sampling, generator=generator, history=history),
        )

    def _fitting(self) -> list[Answer]:
        """Who may enter now, from the front of the queue."""
        longest = max((row.answer.request.tokens for row in self._rows), default=0)
        entering: list[Answer] = []
        for answer in self._waiting:
            longest = max(longest, answer.request.tokens)
            rows = self.running + len(entering) + 1
            if not self.budget.fits(rows, longest):
                break
            if self._cache is not None and longest <= self._cache.capacity:
                worth = self.budget.fits(int(self._cache.slots * WORTH_A_MOVE), longest)
                if rows > self._cache.slots and not worth:
                    break
            entering.append(answer)
        return entering

    def _prepare(self, entering: Sequence[Answer]) -> None:
        """Have memory and weights ready for rows that enter."""
        requests = [row.answer.request for row in self._rows]
        requests += [answer.request for answer in entering]
        rows, longest = len(requests), max(request.tokens for request in requests)
        if self._decode is None:
            wanted = [answer.request.decoding.max_new_tokens for answer in self._waiting]
            at_once = min(len(wanted), self.budget.max_rows)
            self._decode = DecodeStep(self.model, sum(wanted) // at_once)
        if self._cache is None:
            self._cache = self.model.decoder.new_cache(0, 0, slots=0)
        if rows > self._cache.slots or longest > self._cache.capacity:
            slots = rows
            most = self.running + self.waiting
            while slots < most and self.budget.fits(slots + 1, longest):
                slots += 1
            self._cache.resize(slots, columns_for(slots, longest))

    def _logprobs(self, logits: Tensor, picked: Sequence[int]) -> Sequence[TokenLogprob | None]:
        made: list[TokenLogprob | None] = [None] * len(picked)
        wanting = [
            (i, top)
            for i, row in enumerate(self._rows)
            if (top := row.answer.request.decoding.top_logprobs) is not None
        ]
        if not wanting:
            return made
        rows = [i for i, _ in wanting]
        found = logits[rows].float().log_softmax(-1)  # (wanting, vocab)
        chosen = found[range(len(rows)), [picked[i] for i in rows]].tolist()
        best = found.topk(min(max(top for _, top in wanting), found.shape[-1]))
        values, ids = best.values.tolist(), best.indices.tolist()
        for place, (i, top) in enumerate(wanting):
            pairs = zip(ids[place][:top], values[place][:top], strict=True)
            made[i] = TokenLogprob(logprob=chosen[place], top=tuple(pairs))
        return made
