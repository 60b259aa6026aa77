"""Bodies of requests, read under a limit, and the end of a connection noticed."""

from __future__ import annotations

import hmac

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from vlmkit.serving.api_error import ApiError, bad_request
from vlmkit.serving.schema import TAGS, ChatRequest


async def read_chat_request(request: Request, most: int) -> ChatRequest:
    """The body, checked.

    Args:
        request: not yet read.
        most: bytes.

    Raises:
        ApiError: it is too large, no JSON, or not a chat request; says where.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # also keeps other web pages out: a browser asks before it sends this type to another site
        raise ApiError(415, f"the content type is {kind or 'missing'!r}: send application/json")
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise _too_large(most)
    except ClientDisconnect as error:
        raise ApiError(400, "the body is not complete") from error
    try:
        return ChatRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        raise bad_request(error, TAGS) from error


def _too_large(most: int) -> ApiError:
    message = f"the body is larger than {most} bytes; send smaller pictures, or name files"
    return ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


async def disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class KeyGuard:
    """Lets requests below `/v1` through that bear the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        """Keep the key.

        Args:
            app: what is guarded.
            key: that clients send as `Authorization: Bearer <key>`.
        """
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or not."""
        if scope["type"] == "http" and _route(scope).startswith("/v1"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                error = ApiError(
                    401,
                    "a key is needed: Authorization: Bearer <key>",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _route(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
