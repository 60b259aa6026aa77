"""The chat page in a real browser: drop a picture, ask, read the answer as it is written."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from tests.inspection.browser import NAMES, find_browser
from tests.serving.running import running
from tests.serving.served import Tiny, png
from vlmkit.serving.limits import Limits

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason=f"no browser: none of {', '.join(NAMES)} is on the path, and VLMKIT_BROWSER is not set",
)

HOSTILE = (
    "</think><img src=x onerror=hurt()>\n\n<script>hurt()</script> **<b onclick=hurt()>bold**\n\n"
    "- `<svg onload=hurt()>`\n- [link](javascript:hurt())\n\n```html\n<iframe srcdoc='<p>'>\n```\n"
    '# <a href="javascript:hurt()">head</a>'
)


def site(app: Starlette, reports: queue.Queue[Any]) -> Starlette:
    """The application, and beside it what the test needs."""

    async def report(request: Request) -> Response:
        reports.put(json.loads(await request.body()))
        return Response()

    async def picture(_: Request) -> Response:
        return Response(png(200, 150), media_type="image/png")

    async def driver(_: Request) -> Response:
        return FileResponse(Path(__file__).parent / "driver.html")

    async def hostile(_: Request) -> Response:
        choice = {"index": 0, "delta": {"content": HOSTILE}, "finish_reason": "stop"}
        body = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
        return Response(body, media_type="text/event-stream")

    async def slow(_: Request) -> Response:
        async def words() -> AsyncIterator[str]:
            try:
                while True:
                    choice = {"index": 0, "delta": {"content": "and "}, "finish_reason": None}
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                    await asyncio.sleep(0.03)
            finally:
                reports.put("hung up")

        return StreamingResponse(words(), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/slow/v1/chat/completions", slow, methods=["POST"]),
            Mount("/slow", app),
            Route("/report", report, methods=["POST"]),
            Route("/picture.png", picture),
            Route("/driver.html", driver),
            Route("/hostile/v1/chat/completions", hostile, methods=["POST"]),
            Mount("/hostile", app),
            Mount("/", app),
        ],
        lifespan=lambda _: app.router.lifespan_context(app),
    )


@pytest.fixture(scope="module")
def found(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    reports: queue.Queue[Any] = queue.Queue()
    app = tiny.app(limits=Limits(prompt_tokens=4096))
    with running(site(app, reports)) as address:
        command = [
            find_browser() or "",
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--window-size=1280,900", "--remote-debugging-port=0"),
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
            f"{address}/driver.html",
        ]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert reports.get(timeout=120) == "hung up"  # by the stop button
            reported: dict[str, Any] = reports.get(timeout=120)
        finally:
            browser.terminate()
            browser.wait(20)
    assert reported["trouble"] == []
    seen: dict[str, Any] = reported["seen"]
    return seen


def test_a_dropped_picture_is_asked_about(found: dict[str, Any]) -> None:
    assert found["model"] == "tiny"
    assert found["longest"] == "16"  # the server's own default
    assert (found["overlay"], found["overlayAfter"]) == (True, False)
    assert found["picture"] == [200, 150]
    assert found["question"] == "What is <img src=x onerror=hurt()> it?"
    assert found["stopShown"]
    assert "40 tokens" in found["foot"]
    assert "cut at the longest answer" in found["foot"]


def test_stop_errors_and_a_new_chat(found: dict[str, Any]) -> None:
    assert found["lengths"] == sorted(set(found["lengths"]))  # shown as it is written
    assert "stopped" in found["stopped"]
    assert found["complaint"] == "max_tokens: 999999 are asked for; at most 8192 are allowed"
    assert found["fresh"] == [0, True]
    assert found["width"][0] <= found["width"][1]


def test_an_answer_is_text_and_nothing_else(found: dict[str, Any]) -> None:
    for part in ("<img src=x", "<script>hurt()</script>", "<svg onload", "javascript:", "<iframe"):
        assert part in found["hostile"]
    assert set(found["elements"]) <= {
        *("P", "STRONG", "EM", "UL", "OL", "LI", "CODE", "PRE", "H3", "DETAILS", "SUMMARY")
    }
    assert found["attributes"] == []
