"""Answers as OpenAI's interface writes them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmkit.inspection.tokens import Vocabulary
from vlmkit.models.generation import FinishReason, Generated, TokenLogprob
from vlmkit.serving.worker import Piece

FINISHED = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.LENGTH: "length",
}


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Writes the answers to one request.

    Attributes:
        model: its name.
        vocabulary: spells tokens.
        prompt_tokens: for `usage`.
        wants_logprobs: whether they were asked for.
    """

    model: str
    vocabulary: Vocabulary
    prompt_tokens: int
    wants_logprobs: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, results: Sequence[Generated]) -> dict[str, Any]:
        """All answers at once."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": self._logprobs(result.token_ids, result.logprobs or ()),
                "finish_reason": FINISHED[result.finish_reason],
                "stop_reason": _stop_reason(result),
            }
            for i, result in enumerate(results)
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": self.usage(sum(len(result.token_ids) for result in results)),
        }

    def opening(self, choice: int) -> dict[str, Any]:
        """The first chunk of an answer: who speaks."""
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """What is new in an answer."""
        return self._chunk(
            piece.choice,
            {"content": piece.text} if piece.text else {},
            logprobs=self._logprobs(piece.token_ids, piece.logprobs),
            result=piece.result,
        )

    def last(self, new_tokens: int) -> dict[str, Any]:
        """The chunk with the number of tokens."""
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": self.usage(new_tokens)}

    def usage(self, new_tokens: int) -> dict[str, int]:
        """Tokens; stop ids do not count."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": self.prompt_tokens + new_tokens,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self,
        choice: int,
        delta: dict[str, str],
        logprobs: Any = None,
        result: Generated | None = None,
    ) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": choice,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": None,
        }
        if result is not None:
            made["finish_reason"] = FINISHED[result.finish_reason]
            made["stop_reason"] = _stop_reason(result)
        return {**self._head("chat.completion.chunk"), "choices": [made]}

    def _logprobs(
        self, token_ids: Sequence[int], found: Sequence[TokenLogprob]
    ) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        content = [
            {
                **self._token(token, own.logprob),
                "top_logprobs": [self._token(other, value) for other, value in own.top],
            }
            for token, own in zip(token_ids, found, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelled = self.vocabulary.content(token_id)
        return {
            "token": spelled.decode(errors="replace"),
            "logprob": max(
                logprob, -9999.0
            ),  # JSON has no infinity; OpenAI's own word for improbable
            "bytes": list(spelled),
        }


def _stop_reason(result: Generated) -> int | str | None:
    """The stop string, as vLLM names it; None for the end of a turn."""
    return result.stopped_by if result.finish_reason == FinishReason.STOP_STRING else None
