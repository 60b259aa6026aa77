"""Who answers the questions of a benchmark: a model in this process, or a file of answers made elsewhere."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from vlmkit.batch import VLMBatch
from vlmkit.data.collate import collate
from vlmkit.data.processor import Plan, Processor
from vlmkit.data.sizes.settings_key import plain, processor_keys
from vlmkit.data.template import ThinkingTemplate
from vlmkit.errors import ConfigError, DataError
from vlmkit.evaluation.decoding import Budget, Decoding
from vlmkit.evaluation.question import Question
from vlmkit.evaluation.responses import Response
from vlmkit.models.generation import Answer, Engine, Generated, Request
from vlmkit.models.generation import Budget as GenerationBudget
from vlmkit.models.generation.engine import columns_for
from vlmkit.models.qwen3vl import Qwen3VL

DECODED_AHEAD = 8
"""Questions whose pictures are decoded while others are answered."""


class Answerer(Protocol):
    """Answers questions.

    Attributes:
        name: in words, for reports.
        checkpoint: hash of the weights; empty where they are not known.
        opens_thinking: whether prompts open a think block.
    """

    name: str
    checkpoint: str
    opens_thinking: bool

    def prompt_settings(self) -> Mapping[str, Any]:
        """How turns are written, plain."""
        ...

    def media_settings(self, budget: Budget) -> Mapping[str, Any]:
        """Pixels, frames, tokenizer and times, plain."""
        ...

    def answer(
        self, questions: Iterable[Question], decoding: Decoding, budget: Budget
    ) -> Iterator[Response]:
        """Answer all questions, in any order, as they are done."""
        ...


class ModelAnswerer:
    """A model in this process, with the processor that it was trained with.

    Questions are laid out from the headers of their media, and answered the longest first, many at a time;
    the media of the next ones are decoded meanwhile.
    """

    def __init__(
        self,
        model: Qwen3VL,
        processor: Processor,
        name: str,
        checkpoint: str = "",
        batch_tokens: int = 16_384,
        batch_rows: int = 32,
        window: int = 512,
    ) -> None:
        """Keep the parts.

        Args:
            model: in evaluation mode.
            processor: the one of training.
            name: see `Answerer`.
            checkpoint: see `Answerer`.
            batch_tokens: of prompts and answers that are in the cache together; one question that is longer
                is answered alone.
            batch_rows: answers that are written together.
            window: questions that are laid out ahead, to find those of like length.
        """
        self.model, self.processor = model, processor
        self.name, self.checkpoint = name, checkpoint
        self.batch_tokens, self.batch_rows, self.window = batch_tokens, batch_rows, window
        self.opens_thinking = isinstance(processor.template, ThinkingTemplate)

    def prompt_settings(self) -> Mapping[str, Any]:
        """See `Answerer.prompt_settings`."""
        return {"template": plain(self.processor.template)}

    def media_settings(self, budget: Budget) -> Mapping[str, Any]:
        """See `Answerer.media_settings`."""
        processor = budget.applied_to(self.processor)
        image, video = processor.image, processor.video
        return {
            **processor_keys(processor),
            "image_pixels": [image.min_pixels, image.max_pixels],
            "video_pixels": [video.min_pixels, video.max_pixels],
            "video_frames": [video.min_frames, video.max_frames],
            "fps": video.fps,
        }

    def answer(
        self, questions: Iterable[Question], decoding: Decoding, budget: Budget
    ) -> Iterator[Response]:
        """See `Answerer.answer`."""
        processor = budget.applied_to(self.processor)
        for ahead in batched(questions, self.window):
            planned: list[tuple[str, Plan]] = []
            for question in ahead:
                try:
                    plan = processor.plan(question.conversation, for_generation=True)
                    planned.append((question.key, plan))
                except DataError as error:
                    yield _unanswered(question.key, error)
            # longest first, so that too little memory shows at once
            planned.sort(key=lambda item: -item[1].num_tokens)
            yield from self._answered(planned, decoding, processor)

    def _answered(
        self, planned: list[tuple[str, Plan]], decoding: Decoding, processor: Processor
    ) -> Iterator[Response]:
        """Prompts take the places of those that are finished; the next ones are decoded meanwhile."""
        if not planned:
            return
        longest = planned[0][1].num_tokens + decoding.max_new_tokens
        room = GenerationBudget(
            max_rows=max(self.batch_rows, decoding.samples),
            kv_tokens=max(self.batch_tokens, columns_for(decoding.samples, longest)),
        )
        engine = Engine(self.model, tokenizer=processor.tokenizer, budget=room)
        device = next(self.model.parameters()).device
        wanted: dict[Answer, str] = {}
        texts: dict[str, list[Generated | None]] = {}
        lengths: dict[str, int] = {}
        with ThreadPoolExecutor(1) as decoder:
            loads = (decoder.submit(_load, key, plan, processor) for key, plan in planned)
            loading = deque(islice(loads, DECODED_AHEAD))
            while loading or wanted:
                while loading and engine.waiting + engine.running < room.max_rows:
                    key, prompt = loading.popleft().result()
                    loading.extend(islice(loads, 1))
                    if isinstance(prompt, DataError):
                        yield _unanswered(key, prompt)
                        continue
                    own = decoding.of_question(key)
                    request = Request(prompt=prompt.to(device), decoding=own)
                    lengths[key] = request.prompt_tokens
                    texts[key] = [None] * decoding.samples
                    for sample in request.samples(decoding.samples):
                        wanted[engine.add(sample)] = key
                for answer in engine.step():
                    if not answer.finished:
                        continue
                    key = wanted.pop(answer)
                    texts[key][answer.request.sample] = answer.result()
                    done = [text for text in texts[key] if text is not None]
                    if len(done) == decoding.samples:
                        del texts[key]
                        yield Response(
                            key=key,
                            texts=tuple(text.text or "" for text in done),
                            finish=tuple(str(text.finish_reason) for text in done),
                            prompt_tokens=lengths.pop(key),
                            new_tokens=sum(len(text.token_ids) for text in done),
                        )


def batched(items: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Lists of so many items, the last one shorter."""
    rest = iter(items)
    while found := list(islice(rest, size)):
        yield found


def _load(key: str, plan: Plan, processor: Processor) -> tuple[str, VLMBatch | DataError]:
    """Decode the media of a question, in a thread of its own."""
    try:
        prompt = collate(
            [[plan.load()]],
            pad_id=processor.special_tokens.pad_id,
            merge_size=processor.image.merge_size,
        )
    except DataError as error:
        return key, error
    return key, prompt


def _unanswered(key: str, error: DataError) -> Response:
    return Response(key=key, error=f"{error.code}: {error}")


class RecordedAnswers:
    """Answers that another program has written: one JSON object a line, with `key` and `text`.

    Args:
        path: the file; `text` may be a list, one for each sample.
        name: see `Answerer`.

    Raises:
        ConfigError: the file is missing or a line is not such an object; names the line.
    """

    opens_thinking = False

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.name
        self.checkpoint = ""
        if not self.path.is_file():
            raise ConfigError(f"answers={path}: there is no such file")
        self._texts: dict[str, tuple[str, ...]] = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                texts = row["text"]
                texts = (texts,) if isinstance(texts, str) else tuple(map(str, texts))
                self._texts[str(row["key"])] = texts
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f'{self.path}:{number}: a line must read {{"key": ..., "text": ...}} ({error!r})'
                ) from error

    def prompt_settings(self) -> Mapping[str, Any]:
        """Not known."""
        return {"recorded": self.path.name}

    def media_settings(self, budget: Budget) -> Mapping[str, Any]:
        """Not known."""
        return {"recorded": self.path.name}

    def answer(
        self, questions: Iterable[Question], decoding: Decoding, budget: Budget
    ) -> Iterator[Response]:
        """See `Answerer.answer`; questions that the file does not have are unanswered."""
        for question in questions:
            texts = self._texts.get(question.key)
            response = Response(key=question.key, error="not in the file of answers")
            if texts is not None:
                finish = ("stop",) * len(texts)
                response = replace(response, texts=texts, finish=finish, error=None)
            yield response
