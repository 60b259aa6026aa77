"""What a chat request may hold. Unknown keys are refused: an option that does nothing misleads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Strict(BaseModel):
    """No unknown keys, no conversions, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextContent(Strict):
    """Text."""

    type: Literal["text"]
    text: str


class MediaUrl(Strict):
    """Where a picture or video is: a `data:` URL, or `file://` below a folder that is allowed."""

    url: str
    detail: Literal["auto", "high"] | None = None  # the model's own pixel budget; there is no "low"


class ImageContent(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: MediaUrl


class VideoContent(Strict):
    """A video, or a stretch of one in seconds."""

    type: Literal["video_url"]
    video_url: MediaUrl
    video_start: float | None = Field(None, ge=0)
    video_end: float | None = Field(None, gt=0)


Content = Annotated[TextContent | ImageContent | VideoContent, Field(discriminator="type")]
TAGS = frozenset(("text", "image_url", "video_url"))


class CalledFunction(Strict):
    """Name and arguments, which are JSON in a text."""

    name: str = Field(min_length=1)
    arguments: str


class CalledTool(Strict):
    """A call in an earlier turn of the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Strict):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: list[Content] | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None  # results stand in the order of their calls
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None  # of answers that a client sends back

    @field_validator("content", mode="before")
    @classmethod
    def _one_text(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ResponseFormat(Strict):
    """Plain text is all there is."""

    type: Literal["text"]


class ChatRequest(Strict):
    """The body of `/v1/chat/completions`. What is null or absent is the server's default."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None  # the following change no answer anywhere
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def choices(self) -> int:
        """How many answers."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage
