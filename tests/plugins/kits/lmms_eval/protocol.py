from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class Text(BaseModel):
    type: Literal["text"]
    text: str


class Image(BaseModel):
    type: Literal["image"]
    url: Any


class Video(BaseModel):
    type: Literal["video"]
    url: Any
    start_time: float | None = None
    end_time: float | None = None


class Audio(BaseModel):
    type: Literal["audio"]
    url: Any


class ChatMessage(BaseModel):
    role: Literal["user", "system", "assistant"]
    content: list[Annotated[Text | Image | Video | Audio, Field(discriminator="type")]]


class ChatMessages(BaseModel):
    messages: list[ChatMessage]
