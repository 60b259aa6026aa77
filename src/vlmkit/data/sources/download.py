"""Fetches a file from the network, once."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from vlmkit.errors import ConfigError, MediaError, Reason

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Download:
    """Bytes behind an `http` or `https` URL, kept in a folder; see `Blob`.

    Redirections to anything else are not followed, proxies are as the environment names them.

    Args:
        url: where they are.
        folder: where they are kept.
        timeout_s: longest time to fetch them.
        max_bytes: largest size.
    """

    url: str
    folder: Path
    timeout_s: float
    max_bytes: int

    @property
    def name(self) -> str:
        """For messages."""
        return self.url if len(self.url) <= 200 else f"{self.url[:200]}…"

    def read(self) -> bytes:
        """See `Blob.read`."""
        kept = self.folder / hashlib.sha256(self.url.encode()).hexdigest()
        try:
            return kept.read_bytes()
        except OSError:
            pass
        content = self._fetched()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(content, kept)
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: what is fetched cannot be kept ({error}); name another folder as the "
                "media's `cache`"
            ) from error
        return content

    def _fetched(self) -> bytes:
        start = time.monotonic()
        content = bytearray()
        try:
            request = urllib.request.Request(self.url, headers={"User-Agent": "vlmkit"})
            with _opener().open(request, timeout=self.timeout_s) as response:
                # one packet at a time: a whole chunk of a slow server could take for ever
                while chunk := response.read1(_CHUNK):
                    content += chunk
                    if len(content) > self.max_bytes:
                        raise MediaError(
                            f"{self.name}: it is larger than max_bytes, {self.max_bytes}",
                            Reason.TOO_LARGE,
                        )
                    if time.monotonic() - start > self.timeout_s:
                        raise TimeoutError
                expected = response.headers.get("Content-Length")
        except MediaError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            missing = error.code in (404, 410)
            reason = Reason.MISSING_FILE if missing else Reason.UNREADABLE
            raise MediaError(
                f"{self.name}: the server says {error.code} {error.reason}", reason
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause: Any = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                raise MediaError(
                    f"{self.name}: not fetched within timeout_s, {self.timeout_s:g} s",
                    Reason.TIMEOUT,
                ) from error
            raise MediaError(f"{self.name}: cannot be fetched ({cause})") from error
        if expected is not None and expected.isdigit() and int(expected) != len(content):
            raise MediaError(f"{self.name}: {len(content)} of {expected} bytes arrived")
        return bytes(content)


def _write(content: bytes, target: Path) -> None:
    """The whole file or nothing."""
    partial = target.with_name(f".{target.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Leads nowhere but to the web."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.HTTPError(newurl, code, "redirected elsewhere", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@lru_cache(maxsize=1)
def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirect,
    ):
        opener.add_handler(handler())
    return opener
