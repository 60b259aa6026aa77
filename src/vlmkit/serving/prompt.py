"""A chat request -> what the engine is asked, with every limit checked before the work it bounds."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from vlmkit.data.collate import collate
from vlmkit.data.image import PlannedImage
from vlmkit.data.processor import Plan, Processor
from vlmkit.data.record import (
    Conversation,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    ToolCall,
    VideoPart,
)
from vlmkit.data.video import PlannedVideo
from vlmkit.errors import DataError
from vlmkit.models.generation import Budget, Decoding, Request, Sampling
from vlmkit.models.generation.engine import columns_for
from vlmkit.serving.api_error import ApiError
from vlmkit.serving.limits import Limits
from vlmkit.serving.media_files import MediaFiles
from vlmkit.serving.schema import ChatMessage, ChatRequest, ImageContent, TextContent

OURS = {"developer": "system"}
SAMPLED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed"),
)
LIMITED = {
    "max_new_tokens": "max_tokens",
    "stop_ids": "stop_token_ids",
}
"""Names of settings here -> in requests."""


@dataclass(frozen=True, kw_only=True)
class PromptMaker:
    """Reads requests; may be called from several threads.

    Attributes:
        processor: of the model.
        media: opens pictures and videos.
        limits: of a request.
        budget: of the engine, into which prompt and answer must fit.
        sampling: what a request leaves open.
        max_new_tokens: of an answer, where the request does not say.
        device: of the model.
    """

    processor: Processor
    media: MediaFiles
    limits: Limits
    budget: Budget
    sampling: Sampling
    max_new_tokens: int
    device: torch.device

    def check(self, asked: ChatRequest) -> None:
        """Refuse what can be refused without looking at the messages' contents.

        Raises:
            ApiError: names the setting, its value and the limit.
        """
        limits = self.limits
        self._most("n", asked.choices, limits.choices)
        self._most("top_logprobs", asked.top_logprobs or 0, limits.top_logprobs)
        self._most("stop", len(asked.stop or ()), limits.stop, "strings")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(400, "stream_options needs stream: true", "stream_options")
        given = [
            name for name in ("max_tokens", "max_completion_tokens") if self._given(asked, name)
        ]
        if len(given) == 2 and asked.max_tokens != asked.max_completion_tokens:
            raise ApiError(400, "max_tokens and max_completion_tokens differ: give one", given[1])
        for name in given:
            self._most(name, getattr(asked, name), limits.max_new_tokens)
        self._decoding(asked, 1)
        kinds = [part.type for message in asked.messages for part in message.content or ()]
        self._most(
            "messages", len(kinds) - kinds.count("text"), limits.media, "pictures and videos"
        )

    def __call__(self, asked: ChatRequest) -> list[Request]:
        """The requests to the engine, one per choice; media are decoded.

        Raises:
            ApiError: a medium cannot be read, or something is beyond its limit.
        """
        with as_bad_request():
            plan = self.processor.plan(self._conversation(asked), for_generation=True)
            self._check_plan(plan)
            decoding = self._decoding(asked, self._room(asked, plan.num_tokens))
            batch = collate(
                [[plan.load()]],
                pad_id=self.processor.special_tokens.pad_id,
                merge_size=self.processor.image.merge_size,
            )
        prompt = batch.to(self.device)
        return Request(prompt=prompt, decoding=decoding).samples(asked.choices)

    def _conversation(self, asked: ChatRequest) -> Conversation:
        messages = [self._message(i, message) for i, message in enumerate(asked.messages)]
        return Conversation(messages=tuple(messages), origin="request")

    def _message(self, number: int, said: ChatMessage) -> Message:
        role: Role = OURS.get(said.role, said.role)  # type: ignore[assignment]
        parts: list[Part] = []
        for i, part in enumerate(said.content or ()):
            place = f"messages[{number}].content[{i}]"
            if isinstance(part, TextContent):
                parts.append(TextPart(part.text))
            elif isinstance(part, ImageContent):
                parts.append(ImagePart(self.media.image(part.image_url.url, place)))
            else:
                video = self.media.video(part.video_url.url, place)
                parts.append(VideoPart(video, part.video_start, part.video_end))
        calls = [ToolCall(c.function.name, c.function.arguments) for c in said.tool_calls or ()]
        if said.content is None and not calls:
            place = f"messages[{number}].content"
            raise ApiError(400, f"{place}: it is missing", place, "missing_required_parameter")
        return Message(
            role=role,
            parts=tuple(parts),
            thinking=said.reasoning_content,
            tool_calls=tuple(calls),
        )

    def _check_plan(self, plan: Plan) -> None:
        limits = self.limits
        for item in plan.media:
            if isinstance(item, PlannedImage | PlannedVideo):
                height, width = item.source_size
                if height * width > limits.image_pixels:
                    raise ApiError(
                        400,
                        f"{item.name}: {height}x{width} (height x width) are {height * width} pixels; "
                        f"at most {limits.image_pixels} are allowed",
                        "messages",
                        "image_too_large",
                    )
            if isinstance(item, PlannedVideo) and len(item.frame_indices) > limits.frames:
                raise ApiError(
                    400,
                    f"{item.name}: {len(item.frame_indices)} frames would be kept at "
                    f"{item.transform.fps:g} per second; at most {limits.frames} are allowed, so ask "
                    "about a stretch (video_start, video_end)",
                    "messages",
                    "video_too_long",
                )
        if plan.num_tokens > limits.prompt_tokens:
            raise ApiError(
                400,
                f"the prompt has {plan.num_tokens} tokens, visual ones included; at most "
                f"{limits.prompt_tokens} are allowed",
                "messages",
                "context_length_exceeded",
            )

    def _room(self, asked: ChatRequest, prompt_tokens: int) -> int:
        """Tokens of an answer: as asked, or the default as far as it fits."""
        wanted = asked.max_completion_tokens or asked.max_tokens
        most = self.budget.kv_tokens
        room = None if most is None else most - prompt_tokens + 1
        if room is not None and room < (wanted or 1):
            raise ApiError(
                400,
                f"a prompt of {prompt_tokens} tokens with max_tokens={wanted or 1} does not fit the "
                f"server's cache of {most} tokens",
                "max_tokens" if wanted else "messages",
                "context_length_exceeded",
            )
        if wanted is not None:
            return wanted
        default = min(self.max_new_tokens, self.limits.max_new_tokens)
        return default if room is None else min(default, room)

    def _decoding(self, asked: ChatRequest, max_new_tokens: int) -> Decoding:
        """The settings of an answer.

        Raises:
            ApiError: one is out of range; names it.
        """
        given = {name: getattr(asked, name) for name in SAMPLED if self._given(asked, name)}
        if given.get("top_k") == -1:  # vLLM's word for all
            given["top_k"] = 0
        if "seed" not in given:
            given["seed"] = secrets.randbits(48)
        stated = (
            asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        )
        try:
            return Decoding(
                max_new_tokens=max_new_tokens if stated is None else stated,
                sampling=replace(self.sampling, **given),
                stop=tuple(asked.stop or ()),
                stop_ids=None if asked.stop_token_ids is None else self._stop_ids(asked),
                top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            )
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            param = LIMITED.get(name, name)
            raise ApiError(400, f"{param} {rest}", param) from error

    def _stop_ids(self, asked: ChatRequest) -> tuple[int, ...]:
        """Those of the request beside the model's own, as vLLM has them."""
        own = self.processor.special_tokens.stop_ids
        return (*own, *(asked.stop_token_ids or ()))

    @staticmethod
    def _given(asked: ChatRequest, name: str) -> bool:
        return getattr(asked, name) is not None

    @staticmethod
    def _most(name: str, value: int, most: int, unit: str = "") -> None:
        if value > most:
            words = f" {unit}" if unit else ""
            raise ApiError(
                400, f"{name}: {value}{words} are asked for; at most {most} are allowed", name
            )


def check_fit(limits: Limits, budget: Budget) -> None:
    """Whether what the limits allow fits the engine.

    Raises:
        ValueError: the cache is too small for the longest prompt; names both.
    """
    if budget.kv_tokens is not None and columns_for(1, limits.prompt_tokens) > budget.kv_tokens:
        raise ValueError(
            f"limits.prompt_tokens is {limits.prompt_tokens}, and budget.kv_tokens is "
            f"{budget.kv_tokens}: the longest prompt would not fit the cache"
        )


@contextmanager
def as_bad_request() -> Iterator[None]:
    """What is wrong with a medium or a turn is the client's to mend."""
    try:
        yield
    except DataError as error:
        raise ApiError(400, str(error), "messages", str(error.code)) from error
