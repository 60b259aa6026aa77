"""Errors as clients of OpenAI's interface expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
"""Words for a status; others are the request's fault."""


class ApiError(Exception):
    """A request that gets no answer, or none to its end."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say what is wrong.

        Args:
            status: of HTTP.
            message: names the value and what would do.
            param: the part of the request, such as `messages[0].content`.
            code: for programs.
            headers: of the response.
        """
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.headers = param, code, headers

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """As a response of its own."""
        headers = dict(self.headers) if self.headers else None
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def bad_request(error: ValidationError, tags: frozenset[str]) -> ApiError:
    """The first thing that is wrong with a body, where it stands.

    Args:
        error: of pydantic.
        tags: kinds of parts, which pydantic puts into places and which are no keys.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    steps = list(first["loc"])
    for i, step in enumerate(steps):
        if isinstance(step, int):
            param += f"[{step}]"
        elif not (step in tags and i and isinstance(steps[i - 1], int)):
            param += f".{step}" if param else step
    message = first["msg"]
    code = None
    if first["type"] == "extra_forbidden":
        message, code = "this server does not know it, or cannot do it", "unsupported_parameter"
    elif first["type"] == "missing":
        code = "missing_required_parameter"
    if not param:
        return ApiError(400, f"the body is not a chat request: {message}")
    return ApiError(400, f"{param}: {message}", param=param, code=code)
