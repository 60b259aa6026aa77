"""A model with its own processor, asked by a harness: conversations in, texts out."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from vlmkit.data.collate import collate_prompt
from vlmkit.data.media import (
    FrameSequence,
    ImageBlob,
    ImageFile,
    ImageRef,
    InMemory,
    VideoFile,
    VideoRef,
    data_url,
)
from vlmkit.data.record import Conversation, Message, TextPart
from vlmkit.data.template import ThinkingTemplate
from vlmkit.errors import ConfigError
from vlmkit.models.generation import (
    Budget,
    Decoding,
    Generated,
    Request,
    Sampling,
    generate_many,
    score,
)
from vlmkit.runs import load_model_and_processor

logger = logging.getLogger(__name__)

THOUGHT_END = "</think>"
LENGTHS = ("max_new_tokens", "max_gen_toks", "max_tokens")
SAMPLED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed"),
)


class HarnessModel:
    """Answers conversations with the processor that the model was trained with."""

    def __init__(
        self,
        run: str | None = None,
        checkpoint: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 1024,
    ) -> None:
        """Load.

        Args:
            run: a run folder,
            checkpoint: or a checkpoint in the published layout: a folder or a hub id.
            device: None: cuda where there is one, else cpu.
            dtype: None: as stored.
            batch_size: answers that are written together.
            max_new_tokens: where a task does not say.

        Raises:
            ConfigError: neither run nor checkpoint is given, or both.
        """
        self.model, self.processor = load_model_and_processor(
            run=run, checkpoint=checkpoint, device=device, dtype=dtype
        )
        self.device = next(self.model.parameters()).device
        self.budget = Budget(max_rows=batch_size, kv_tokens=None)
        self.max_new_tokens = max_new_tokens
        self._ignored: set[str] = set()

    def decoding(self, settings: Mapping[str, Any]) -> Decoding:
        """How a task wants its answers made, in the words of transformers and of harnesses.

        A setting that vlmkit has no meaning for is named in the log, once.

        Raises:
            ConfigError: a value is out of range, or beam search is asked for.
        """
        given = {key: value for key, value in settings.items() if value is not None}
        if given.pop("num_beams", 1) != 1:
            raise ConfigError("num_beams: there is no beam search; leave it at 1")
        length = next((given.pop(key) for key in LENGTHS if key in given), self.max_new_tokens)
        until = given.pop("until", ())
        until = [until] if isinstance(until, str) else until
        sampling = {key: given.pop(key) for key in SAMPLED if key in given}
        if not given.pop("do_sample", True):
            sampling["temperature"] = 0.0
        if unknown := sorted(set(given) - self._ignored):
            self._ignored.update(unknown)
            logger.warning("generation settings without a meaning here: %s", ", ".join(unknown))
        try:
            return Decoding(
                max_new_tokens=length,
                sampling=Sampling(**sampling),
                stop=tuple(text for text in until if text),
            )
        except ValueError as error:
            raise ConfigError(f"generation settings {dict(settings)}: {error}") from error

    def answer(
        self, conversations: Sequence[Conversation], decodings: Sequence[Decoding]
    ) -> list[Generated]:
        """Answer all, many at a time; each draws from a stream of its own.

        Raises:
            MediaError: a picture or video cannot be read; names it.
        """

        def requests() -> Iterator[Request]:
            for i, (asked, decoding) in enumerate(zip(conversations, decodings, strict=True)):
                prompt = collate_prompt(asked, self.processor).to(self.device)
                yield Request(prompt=prompt, decoding=decoding, sample=i)

        return generate_many(
            self.model,
            requests(),
            tokenizer=self.processor.tokenizer,
            budget=self.budget,
            lookahead=2 * self.budget.max_rows,
        )

    def score(self, conversation: Conversation, continuation: str) -> tuple[float, bool]:
        """Log-likelihood of a continuation, and whether greedy decoding would begin with it."""
        prompt = collate_prompt(conversation, self.processor).to(self.device)
        ids = self.processor.tokenizer.encode(continuation, add_special_tokens=False).ids
        (found,) = score(self.model, prompt, [ids])
        return found.total, found.greedy

    def said(self, made: Generated) -> str:
        """The answer without the reasoning of a Thinking model."""
        text = made.text or ""
        if isinstance(self.processor.template, ThinkingTemplate) and THOUGHT_END in text:
            return text.partition(THOUGHT_END)[2].lstrip("\n")
        return text


def image_of(value: Any, name: str) -> ImageRef:
    """A picture as harnesses hand it over: an opened one, a path, a data: or file:// URL.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        kept = value.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
        (value if kept else value.convert("RGB")).save(file, "PNG", compress_level=1)
        return ImageBlob(InMemory(file.getvalue(), name))
    if isinstance(value, str) and value.startswith("data:"):
        return ImageBlob(data_url(value, name))
    return ImageFile(_path_of(value, name))


def video_of(value: Any, name: str) -> VideoRef:
    """A video as harnesses hand it over: a path or a file:// URL.

    Raises:
        ConfigError: it is something else, such as frames without times.
    """
    return value if isinstance(value, FrameSequence) else VideoFile(_path_of(value, name))


def with_system(messages: Sequence[Message], system: str | None) -> Conversation:
    """A conversation, opened by a system message unless it has one."""
    opened = tuple(messages)
    if system and not (opened and opened[0].role == "system"):
        opened = (Message(role="system", parts=(TextPart(system),)), *opened)
    return Conversation(messages=opened)


def _path_of(value: Any, name: str) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{name}: a {type(value).__name__} is no picture or video; give a path")
    if value.startswith("file://"):
        return Path(unquote(urlsplit(value).path))
    if "://" in value:
        raise ConfigError(f"{name}: {value[:100]} is on the network, which is not used")
    return Path(value)
