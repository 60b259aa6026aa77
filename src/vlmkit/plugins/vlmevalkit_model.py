"""vlmkit's models as VLMEvalKit's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from vlmkit.data.record import ImagePart, Message, Part, TextPart, VideoPart
from vlmkit.errors import ConfigError
from vlmkit.plugins.harness_model import HarnessModel, image_of, video_of, with_system

DECODING = ("temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "seed")


class VlmkitModel(BaseModel):
    """Takes interleaved messages and whole videos; prompts are those of the datasets.

    VLMEvalKit asks one question at a time.

    Args:
        run: see `HarnessModel`, as for the next four.
        checkpoint: a checkpoint in the published layout.
        device: None: cuda where there is one.
        dtype: None: as stored.
        max_new_tokens: of an answer.
        system_prompt: for all questions.
        decoding: settings such as `temperature`; greedy without any.

    Raises:
        ConfigError: what to load is not said, or a setting is unknown.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    VIDEO_LLM = True
    allowed_types = ("text", "image", "video")

    def __init__(
        self,
        run: str | None = None,
        checkpoint: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int = 1024,
        system_prompt: str | None = None,
        **decoding: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(decoding) - set(DECODING)):
            raise ConfigError(f"unknown settings {unknown}; there are {', '.join(DECODING)}")
        self.harness = HarnessModel(
            run=run,
            checkpoint=checkpoint,
            device=device,
            dtype=dtype,
            batch_size=1,
            max_new_tokens=max_new_tokens,
        )
        self.system_prompt = system_prompt
        self.decoding = self.harness.decoding(decoding)

    def generate_inner(
        self, message: Sequence[Mapping[str, Any]], dataset: str | None = None
    ) -> str:
        """Answer one message; parts stay in their order."""
        return self._answer([Message(role="user", parts=_parts(message, dataset or "message"))])

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer the last of several turns."""
        place = dataset or "message"
        turns = [
            Message(role=turn["role"], parts=_parts(turn["content"], place)) for turn in message
        ]
        return self._answer(turns)

    def _answer(self, turns: Sequence[Message]) -> str:
        asked = with_system(turns, self.system_prompt)
        (made,) = self.harness.answer([asked], [self.decoding])
        return self.harness.said(made)


def _parts(items: Sequence[Mapping[str, Any]], place: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for i, item in enumerate(items):
        name, value = f"{place} part {i}", item["value"]
        if item["type"] == "text":
            parts.append(TextPart(value))
        elif item["type"] == "image":
            parts.append(ImagePart(image_of(value, name)))
        elif item["type"] == "video":
            parts.append(VideoPart(video_of(value, name)))
        else:
            raise ConfigError(f"{name}: {item['type']} is nothing that the model can take")
    return tuple(parts)
