"""vlmkit's models as lmms-eval's chat models."""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import os
from collections.abc import Iterable, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages

from vlmkit.data.record import Conversation, ImagePart, Message, Part, TextPart, VideoPart
from vlmkit.errors import ConfigError
from vlmkit.plugins.harness_model import HarnessModel, image_of, video_of, with_system


class LmmsEvalModel(lmms):
    """The chat path: messages reach vlmkit's processor whole, with the times of their videos.

    Args:
        run: see `HarnessModel`, as for the next three.
        checkpoint: a checkpoint in the published layout.
        device: `--device` of lmms-eval.
        dtype: None: as stored.
        batch_size: `--batch_size` of lmms-eval; `auto` is 8.
        max_new_tokens: where a task does not say.
        system_prompt: or the file that holds it; for messages without one.
        max_batch_size: of lmms-eval; an upper bound of `batch_size`.

    Raises:
        ConfigError: several processes are started, or what to load is not said.
    """

    is_simple = False

    def __init__(
        self,
        run: str | None = None,
        checkpoint: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 8,
        max_new_tokens: int = 1024,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "run lmms-eval in one process: this model answers in batches on one device"
            )
        rows = 8 if str(batch_size).startswith("auto") else int(batch_size)
        self.harness = HarnessModel(
            run=run,
            checkpoint=checkpoint,
            device=device,
            dtype=dtype,
            batch_size=min(rows, max_batch_size or rows),
            max_new_tokens=max_new_tokens,
        )
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else None

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """See `lmms`; answers stand in the order of the requests."""
        conversations, decodings = [], []
        for request in requests:
            _, doc_to_messages, settings, doc_id, task, split = request.args
            said = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            place = f"{task}[{split}][{doc_id}]"
            conversations.append(with_system(_turns(said.messages, place), self.system_prompt))
            decodings.append(self.harness.decoding(settings))
        results = []
        for request, made in zip(
            requests, self.harness.answer(conversations, decodings), strict=True
        ):
            text = self.harness.said(made)
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
            counts = TokenCounts(output_tokens=len(made.token_ids))
            results.append(GenerationResult(text=text, token_counts=counts))
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """See `lmms`. Such tasks give a text and pictures, which stand before the text."""
        found = []
        for request in requests:
            context, continuation, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            if callable(continuation):
                continuation = continuation(doc)
            parts: list[Part] = [
                ImagePart(image_of(value, f"{task}[{split}][{doc_id}] visual {i}"))
                for i, value in enumerate(doc_to_visual(doc) or ())
            ]
            turn = Message(role="user", parts=(*parts, TextPart(context)))
            asked: Conversation = with_system([turn], self.system_prompt)
            found.append(self.harness.score(asked, str(continuation)))
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("tasks of several rounds are not supported; leave them out of --tasks")


def _turns(messages: Iterable[Any], place: str) -> list[Message]:
    turns = []
    for number, message in enumerate(messages):
        parts: list[Part] = []
        for i, content in enumerate(message.content):
            name = f"{place} messages[{number}].content[{i}]"
            if content.type == "text":
                parts.append(TextPart(content.text))
            elif content.type == "image":
                parts.append(ImagePart(image_of(content.url, name)))
            elif content.type == "video":
                video = video_of(content.url, name)
                parts.append(VideoPart(video, content.start_time, content.end_time))
            else:
                raise ConfigError(f"{name}: {content.type} is nothing that the model can take")
        turns.append(Message(role=message.role, parts=tuple(parts)))
    return turns
