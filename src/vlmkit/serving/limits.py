"""How much one client may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Each is checked before the work that it bounds; what is beyond is refused, never cut.

    Attributes:
        request_bytes: body of a request; pictures as data URLs are a third larger than their files.
        file_bytes: a picture or video that is named by a `file://` URL.
        media: pictures and videos of a request.
        image_pixels: height times width of a picture, or of a frame, before it is resized.
        frames: kept of each video.
        prompt_tokens: of a prompt, visual ones included.
        max_new_tokens: of an answer.
        choices: answers to one request (`n`).
        top_logprobs: alternatives per token.
        stop: stop strings of a request.
        queue: answers that may wait beside those under way; more are refused with status 429.
        timeout_s: from the arrival of a request to the end of its answer.
    """

    request_bytes: int = 64_000_000
    file_bytes: int = 1_000_000_000
    media: int = 32
    image_pixels: int = 64_000_000
    frames: int = 768
    prompt_tokens: int = 32_768
    max_new_tokens: int = 8192
    choices: int = 8
    top_logprobs: int = 20
    stop: int = 16
    queue: int = 64
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the limit and its value.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("media", "top_logprobs", "stop", "queue") else 1
            if field.name == "timeout_s":
                fine = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
                least_words = "a number above 0"
            else:
                fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
                least_words = f"a whole number from {least}"
            if not fine:
                raise ValueError(f"{field.name} must be {least_words}, got {value!r}")
