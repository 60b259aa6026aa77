"""Who answers the questions of a benchmark: a model in this process, or a file of answers made elsewhere."""

from __future__ import annotations

import json
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
from vlmkit.models.generation import generate_batch
from vlmkit.models.qwen3vl import Qwen3VL


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

    Questions are laid out from the headers of their media, and answered in batches of like length; the
    media of the next batch are decoded while one is answered.
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
            batch_tokens: of prompts and answers that are in memory together; one question that is longer
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
        with ThreadPoolExecutor(1) as decoder:
            for questions_ahead in batched(questions, self.window):
                planned: list[tuple[str, Plan]] = []
                for question in questions_ahead:
                    try:
                        plan = processor.plan(question.conversation, for_generation=True)
                        planned.append((question.key, plan))
                    except DataError as error:
                        yield _unanswered(question.key, error)
                batches = list(self._batches(planned, decoding))
                loading = [decoder.submit(_load, batch, processor) for batch in batches[:1]]
                for i in range(len(batches)):
                    if i + 1 < len(batches):
                        loading.append(decoder.submit(_load, batches[i + 1], processor))
                    prompts, failed = loading.pop(0).result()
                    yield from failed
                    yield from self._run(prompts, decoding)

    def _batches(
        self, planned: list[tuple[str, Plan]], decoding: Decoding
    ) -> Iterator[list[tuple[str, Plan]]]:
        """Longest first, so that too little memory shows at once."""
        rows = max(self.batch_rows // decoding.samples, 1)
        batch: list[tuple[str, Plan]] = []
        longest = 0
        for key, plan in sorted(planned, key=lambda item: -item[1].num_tokens):
            longest = longest or plan.num_tokens + decoding.max_new_tokens
            if batch and (
                len(batch) == rows
                or (len(batch) + 1) * decoding.samples * longest > self.batch_tokens
            ):
                yield batch
                batch, longest = [], plan.num_tokens + decoding.max_new_tokens
            batch.append((key, plan))
        if batch:
            yield batch

    def _run(self, prompts: Mapping[str, VLMBatch], decoding: Decoding) -> Iterator[Response]:
        if not prompts:
            return
        device = next(self.model.parameters()).device
        answers = generate_batch(
            self.model,
            [prompt.to(device) for prompt in prompts.values()],
            max_new_tokens=decoding.max_new_tokens,
            sampling=decoding.sampling,
            num_samples=decoding.samples,
        )
        for i, (key, prompt) in enumerate(prompts.items()):
            own = answers[i * decoding.samples : (i + 1) * decoding.samples]
            texts = [self.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in own]
            finish = ["length" if len(ids) == decoding.max_new_tokens else "stop" for ids in own]
            yield Response(
                key=key,
                texts=tuple(texts),
                finish=tuple(finish),
                prompt_tokens=prompt.input_ids.shape[1],
                new_tokens=sum(map(len, own)),
            )


def batched(items: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Lists of so many items, the last one shorter."""
    rest = iter(items)
    while found := list(islice(rest, size)):
        yield found


def _load(
    batch: list[tuple[str, Plan]], processor: Processor
) -> tuple[dict[str, VLMBatch], list[Response]]:
    """Decode the media of a batch, in a thread of its own."""
    prompts: dict[str, VLMBatch] = {}
    failed = []
    for key, plan in batch:
        try:
            prompts[key] = collate(
                [[plan.load()]],
                pad_id=processor.special_tokens.pad_id,
                merge_size=processor.image.merge_size,
            )
        except DataError as error:
            failed.append(_unanswered(key, error))
    return prompts, failed


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
