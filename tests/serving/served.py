"""A tiny untrained run behind the application."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from vlmkit.data.collate import collate_prompt
from vlmkit.data.processor import Processor
from vlmkit.data.record import Conversation, Message, Part, TextPart
from vlmkit.models.generation import (
    Budget,
    Decoding,
    Generated,
    Request,
    Sampling,
    generate_text,
)
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.runs import load_run
from vlmkit.serving.app import chat_app
from vlmkit.serving.limits import Limits
from vlmkit.serving.media_files import MediaFiles
from vlmkit.serving.prompt import PromptMaker

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Tiny:
    model: Qwen3VL
    processor: Processor

    @classmethod
    def load(cls, folder: Path) -> Tiny:
        run = load_run(folder)
        return cls(model=run.model, processor=run.processor)

    def app(
        self,
        roots: tuple[Path, ...] = (),
        budget: Budget | None = None,
        limits: Limits | None = None,
        **options: Any,
    ) -> Starlette:
        limits = limits or Limits(prompt_tokens=4096)
        maker = PromptMaker(
            processor=self.processor,
            media=MediaFiles(roots, limits.file_bytes),
            limits=limits,
            budget=budget or Budget(max_rows=8, kv_tokens=20_000),
            sampling=Sampling(),
            max_new_tokens=16,
            device=torch.device("cpu"),
        )
        return chat_app(self.model, maker, name="tiny", **options)

    @contextmanager
    def client(self, **options: Any) -> Iterator[TestClient]:
        with TestClient(self.app(**options)) as client:
            yield client

    def expected(self, *parts: Part | str, **decoding: Any) -> Generated:
        """What `vlmkit.generate` answers."""
        parts = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
        conversation = Conversation(messages=(Message(role="user", parts=parts),))  # type: ignore[arg-type]
        request = Request(
            prompt=collate_prompt(conversation, self.processor),
            decoding=Decoding(**{"max_new_tokens": 16, **decoding}),
        )
        *_, last = generate_text(self.model, request, self.processor.tokenizer)
        assert isinstance(last, Generated)
        return last


def user(*content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    return [{"role": "user", "content": parts}]


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str, **stretch: float) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}, **stretch}


def png(width: int = 64, height: int = 48, color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def as_data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def events(text: str) -> list[dict[str, Any]]:
    """Of a stream that has ended as it should."""
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def joined(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    return "".join(
        own["delta"].get("content", "")
        for chunk in chunks
        for own in chunk.get("choices", ())
        if own["index"] == choice
    )
