"""The application: what stands under which path."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vlmkit.models.generation import Engine
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.serving.api_error import ApiError
from vlmkit.serving.bodies import KeyGuard
from vlmkit.serving.chat import ChatCompletions
from vlmkit.serving.prompt import PromptMaker, check_fit
from vlmkit.serving.worker import EngineWorker

DECODERS = 2
"""Threads that read requests and decode their media."""

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("chat.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/markdown.js": ("markdown.js", "text/javascript"),
}
PAGE_HEADERS = {
    # the page runs its own scripts and talks to its own server; a text that got in could do neither
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def chat_app(
    model: Qwen3VL,
    maker: PromptMaker,
    name: str,
    api_key: str | None = None,
    allowed_hosts: Sequence[str] = ("*",),
) -> Starlette:
    """The chat endpoint and the chat page of one model.

    Args:
        model: in evaluation mode.
        maker: reads requests, under its limits and budget.
        name: of the model.
        api_key: that clients must send; None: none is asked for.
        allowed_hosts: names under which the server may be called; `*` for any.

    Raises:
        ValueError: the limits allow prompts that the budget does not.
    """
    check_fit(maker.limits, maker.budget)
    tokenizer = maker.processor.tokenizer
    worker = EngineWorker(
        lambda: Engine(model, tokenizer=tokenizer, budget=maker.budget, streams=True),
        max_open=maker.budget.max_rows + maker.limits.queue,
    )
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
    created = int(time.time())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()
        pool.shutdown(wait=False, cancel_futures=True)

    async def models(_: Request) -> Response:
        about = {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vlmkit",
            "max_model_len": maker.budget.kv_tokens,
            "limits": asdict(maker.limits),
            "defaults": {**asdict(maker.sampling), "max_tokens": maker.max_new_tokens},
        }
        return JSONResponse({"object": "list", "data": [about]})

    async def health(_: Request) -> Response:
        state = {"status": "ok" if worker.is_alive else "stopped", "answers": worker.open_answers}
        return JSONResponse(state, status_code=200 if worker.is_alive else 503)

    async def page(request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        file, kind = PAGE_FILES[path or "/"]
        text = (PAGE / file).read_text(encoding="utf-8")
        return Response(text, media_type=kind, headers=PAGE_HEADERS)

    routes = [
        Route("/v1/chat/completions", ChatCompletions(name, maker, worker, pool), methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
        *(Route(path, page) for path in PAGE_FILES),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))]
    if api_key is not None:
        middleware.append(Middleware(KeyGuard, key=api_key))
    return Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, error.detail, headers=error.headers).response()
