"""`/v1/chat/completions`: from a request to its answers, at once or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from vlmkit.inspection.tokens import Vocabulary
from vlmkit.models.generation import Generated
from vlmkit.serving.api_error import ApiError
from vlmkit.serving.bodies import disconnected, read_chat_request
from vlmkit.serving.prompt import PromptMaker
from vlmkit.serving.replies import Replies
from vlmkit.serving.schema import ChatRequest
from vlmkit.serving.worker import EngineWorker, Ticket

logger = logging.getLogger(__name__)

EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class ChatCompletions:
    """The endpoint, as an ASGI application. An answer ends with its client's connection."""

    def __init__(
        self, name: str, maker: PromptMaker, worker: EngineWorker, pool: ThreadPoolExecutor
    ) -> None:
        """Keep the parts.

        Args:
            name: of the model.
            maker: reads requests, in the threads of `pool`.
            worker: answers.
            pool: decodes media beside the event loop.
        """
        self.name, self._maker, self._worker, self._pool = name, maker, worker, pool
        self._vocabulary = Vocabulary(maker.processor.tokenizer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sender = _Sender(scope, receive, send)
        timeout_s = self._maker.limits.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                with self._worker.room(1):  # bodies take memory, too
                    asked = await self._read(Request(scope, receive))
                    with self._worker.room(asked.choices - 1):
                        await _while_connected(self._answer(asked, sender), receive)
        except TimeoutError:
            message = f"the answer was not finished within {timeout_s:g} s"
            await sender.fail(ApiError(504, message, code="timeout"))
        except ApiError as error:
            await sender.fail(error)
        except asyncio.CancelledError:  # by the server, which ends and has waited long enough
            await sender.fail(ApiError(503, "the server is stopping", code="stopping"))
        except Exception:
            logger.exception("a request failed")
            await sender.fail(ApiError(500, "the server failed; its log says why"))

    async def _read(self, request: Request) -> ChatRequest:
        asked = await read_chat_request(request, self._maker.limits.request_bytes)
        if asked.model not in (None, self.name):
            message = f"there is no model {asked.model!r} here; it is {self.name!r}"
            raise ApiError(404, message, "model", "model_not_found")
        self._maker.check(asked)
        return asked

    async def _answer(self, asked: ChatRequest, sender: _Sender) -> None:
        loop = asyncio.get_running_loop()
        requests = await loop.run_in_executor(self._pool, self._maker, asked)
        replies = Replies(
            model=self.name,
            vocabulary=self._vocabulary,
            prompt_tokens=requests[0].prompt_tokens,
            wants_logprobs=bool(asked.logprobs),
        )
        ticket = self._worker.submit(requests)
        try:
            if asked.stream:
                await self._stream(asked, ticket, replies, sender)
            else:
                await sender.whole(replies.whole(await _results(ticket, asked.choices)))
        finally:
            self._worker.cancel(ticket)

    async def _stream(
        self, asked: ChatRequest, ticket: Ticket, replies: Replies, sender: _Sender
    ) -> None:
        for choice in range(asked.choices):
            await sender.event(replies.opening(choice))
        missing, new_tokens = asked.choices, 0
        while missing:
            piece = await ticket.next()
            await sender.event(replies.chunk(piece))
            if piece.result is not None:
                missing -= 1
                new_tokens += len(piece.result.token_ids)
        if asked.includes_usage:
            await sender.event(replies.last(new_tokens))
        await sender.end()


async def _results(ticket: Ticket, number: int) -> list[Generated]:
    results: dict[int, Generated] = {}
    while len(results) < number:
        piece = await ticket.next()
        if piece.result is not None:
            results[piece.choice] = piece.result
    return [results[choice] for choice in range(number)]


async def _while_connected(work: Any, receive: Receive) -> None:
    """Run to the end, or until the client is gone."""
    tasks = working, _ = asyncio.create_task(work), asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_done = working.done()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if is_done:
        working.result()


class _Sender:
    """A response that is a whole or a stream; what goes wrong is told in whichever has begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._streams = False
        self._done = False

    async def whole(self, content: dict[str, Any]) -> None:
        """A response of its own."""
        self._done = True
        await JSONResponse(content)(self._scope, self._receive, self._send)

    async def event(self, content: dict[str, Any]) -> None:
        """One event of a stream, which begins with the first."""
        if not self._streams:
            self._streams = True
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await self._write(json.dumps(content, ensure_ascii=False, separators=(",", ":")))

    async def end(self) -> None:
        """The end of a stream."""
        self._done = True
        await self._write("[DONE]")
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: ApiError) -> None:
        """Say what went wrong, if that can still be said."""
        if self._done:
            return
        if self._streams:
            await self.event(error.body())
            await self.end()
        else:
            self._done = True
            await error.response()(self._scope, self._receive, self._send)

    async def _write(self, data: str) -> None:
        body = f"data: {data}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
