"""What is beyond a limit is refused before the work, and what nobody waits for is given up."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serving.served import CHAT, Tiny, as_data_url, events, image, png, user, video
from vlmkit.assets import asset_path
from vlmkit.errors import ConfigError
from vlmkit.models.generation import Budget, Engine
from vlmkit.serving.limits import Limits
from vlmkit.serving.media_files import MediaFiles

CLIP = asset_path("video", "big_buck_bunny.mp4")


def error_of(client: TestClient, **body: Any) -> tuple[int, dict[str, Any]]:
    response = client.post(CHAT, json={"messages": user("Hi"), **body})
    return response.status_code, response.json().get("error", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that may be named, and ways out of their folder."""
    base = tmp_path_factory.mktemp("base")
    inside = base / "inside"
    (inside / "deeper").mkdir(parents=True)
    (base / "inside-too").mkdir()
    for file in (base / "secret.png", base / "inside-too" / "secret.png", inside / "fine.png"):
        file.write_bytes(png())
    (inside / "file link.png").symlink_to(base / "secret.png")
    (inside / "folder link").symlink_to(base)
    (inside / "inner link.png").symlink_to("fine.png")
    (inside / "ring").symlink_to("ring")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.fixture(scope="module")
def small(tiny: Tiny, folder: Path):
    limits = Limits(
        request_bytes=20_000, file_bytes=500, media=2, image_pixels=10_000, frames=4,
        prompt_tokens=400, max_new_tokens=32, choices=2, top_logprobs=3, stop=1,
    )  # fmt: skip
    budget = Budget(max_rows=2, kv_tokens=410)
    with tiny.client(limits=limits, budget=budget, roots=(folder,)) as client:
        yield client


def test_limits_of_a_request(small: TestClient, tiny: Tiny) -> None:
    red = image(as_data_url(png()))
    cases = [
        ({"messages": user("x" * 20_000)}, 413, "larger than 20000 bytes"),
        ({"messages": user(red, red, red)}, 400, "3 pictures and videos are asked for; at most 2"),
        ({"messages": user(image(as_data_url(png(101, 100))))}, 400, "100x101 (height x width) are 10100"),
        ({"messages": user("many words " * 200)}, 400, "at most 400 are allowed"),
        ({"messages": user("words " * 125), "max_tokens": 32}, 400, "does not fit the server's cache of 410"),
        ({"max_tokens": 33}, 400, "max_tokens: 33 are asked for; at most 32"),
        ({"n": 3}, 400, "n: 3 are asked for; at most 2"),
        ({"stop": ["a", "b"]}, 400, "stop: 2 strings"),
        ({"logprobs": True, "top_logprobs": 4}, 400, "at most 3"),
    ]  # fmt: skip
    for body, status, words in cases:
        found = error_of(small, **body)
        assert (found[0], words in found[1].get("message", "")) == (status, True), (words, found)

    def pieces():
        yield b'{"messages": "'
        for _ in range(30):
            yield b"x" * 1000

    headers = {"Content-Type": "application/json"}
    assert (
        small.post(CHAT, content=pieces(), headers=headers).status_code == 413
    )  # length not stated
    assert error_of(small)[0] == 200


def test_frames_of_a_video(tiny: Tiny) -> None:
    clip = tiny.processor.video
    limits = Limits(frames=max(int(2 * clip.fps), clip.min_frames), prompt_tokens=4096)
    with tiny.client(limits=limits, roots=(CLIP.parent,)) as client:
        status, error = error_of(client, messages=user(video(CLIP.as_uri()), "And?"))
        assert (status, error["code"]) == (400, "video_too_long")
        assert f"at most {limits.frames} are allowed, so ask about a stretch" in error["message"]
        short = user(video(CLIP.as_uri(), video_start=0, video_end=2), "And?")
        assert error_of(client, messages=short) == (200, {})


def test_nothing_outside_the_folder_is_opened(small: TestClient, folder: Path) -> None:
    fine = ["fine.png", "deeper/../fine.png", "inner%20link.png", "folder%20link/inside/fine.png"]
    for name in fine:
        assert error_of(small, messages=user(image(f"file://{folder}/{name}")))[0] == 200, name
    assert error_of(small, messages=user(image(f"file://localhost{folder}/fine.png")))[0] == 200
    outside = [
        f"{folder}/../secret.png",
        f"{folder}/deeper/../../secret.png",
        f"{folder}/%2e%2e/secret.png",
        f"{folder}/file%20link.png",
        f"{folder}/folder%20link/secret.png",
        f"{folder}-too/secret.png",
        f"{folder.parent}/not there.png",
        f"{folder}/ring",
        "/etc/passwd",
        "/",
    ]
    for path in outside:
        status, error = error_of(small, messages=user(image(f"file://{path}")))
        # the same words whether it exists or not
        assert (status, "is not below a folder" in error["message"]) == (400, True), (path, error)
    for url, words in [
        (f"file://{folder}/none.png", "no such file"),
        (f"file://{folder}/pipe", "is not a file"),
        (f"file://{folder}", "is not a file"),
        (f"file://host{folder}/fine.png", "names no file"),
        ("file:fine.png", "nothing is fetched"),
        ("file://", "names no file"),
        (f"file://{folder}/fine.png%00.jpg", "names no file"),
        ("file://[", "no URL"),
    ]:
        status, error = error_of(small, messages=user(image(url)))
        assert (status, words in error["message"]) == (400, True), (url, error)
    (folder / "large.png").write_bytes(os.urandom(600))
    assert (
        "at most 500"
        in error_of(small, messages=user(image(f"file://{folder}/large.png")))[1]["message"]
    )
    with pytest.raises(ConfigError, match=r"media_root: .*none is not a folder"):
        MediaFiles([folder / "none"])


def test_no_folder_no_files(tiny: Tiny) -> None:
    with tiny.client() as client:
        found = error_of(client, messages=user(image(CLIP.as_uri())))
    assert "files may not be named" in found[1]["message"]


def test_key_and_host(tiny: Tiny) -> None:
    with tiny.client(api_key="schlüssel", allowed_hosts=["testserver"]) as client:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "schl"}):
            response = client.post(CHAT, json={"messages": user("Hi")}, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/v1/models", headers=headers).status_code == 401
        right = {"Authorization": "Bearer schlüssel".encode()}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/").status_code == client.get("/health").status_code == 200
        # a name that another site has made point here
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def endless() -> dict[str, Any]:
    """Goes on for many steps: greedy choice turns in a circle."""
    return {"messages": user("Hi"), "max_tokens": 7800}


def test_a_full_queue_and_the_time_limit(tiny: Tiny) -> None:
    limits = Limits(queue=1, timeout_s=1.5, prompt_tokens=1000)
    with tiny.client(limits=limits, budget=Budget(max_rows=1, kv_tokens=8000)) as client:
        assert error_of(client, n=3)[0] == 429
        found: list[Any] = []
        body = endless()
        busy = [
            threading.Thread(target=lambda: found.append(client.post(CHAT, json=body)))
            for _ in range(2)
        ]
        for thread in busy:
            thread.start()
        while client.get("/health").json()["answers"] < 2:
            time.sleep(0.01)
        response = client.post(CHAT, json=body)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert response.json()["error"]["code"] == "queue_full"
        for thread in busy:
            thread.join()
        assert [response.status_code for response in found] == [504, 504]
        assert found[0].json()["error"]["type"] == "timeout_error"
        *pieces, last = events(client.post(CHAT, json={**body, "stream": True}).text)
        assert pieces
        assert last["error"]["code"] == "timeout"
        assert client.get("/health").json()["answers"] == 0
        assert error_of(client)[0] == 200


def test_a_failure_of_the_engine_is_told_and_survived(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step, left = Engine.step, [3]

    def failing(engine: Engine):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("out of memory")
        return step(engine)

    monkeypatch.setattr(Engine, "step", failing)
    with tiny.client() as client:
        assert error_of(client) == (500, {
            "message": "the engine failed (RuntimeError); the answer was given up",
            "type": "server_error", "param": None, "code": "engine_failed",
        })  # fmt: skip
        assert "out of memory" in caplog.text
        assert error_of(client)[0] == 200
    assert client.app.routes  # stopped
    with pytest.raises(ValueError, match="the longest prompt would not fit"):
        tiny.app(limits=Limits(prompt_tokens=500), budget=Budget(kv_tokens=499))
    with pytest.raises(ValueError, match="queue must be a whole number from 0"):
        Limits(**{**asdict(Limits()), "queue": -1})
    with pytest.raises(ValueError, match="timeout_s must be a number above 0"):
        Limits(timeout_s=0)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_with_its_connection(tiny: Tiny, stream: bool) -> None:
    app = tiny.app()

    async def leave_early() -> list[int]:
        async with app.router.lifespan_context(app):
            gone, sent = asyncio.Event(), []
            body = json.dumps({**endless(), "stream": stream}).encode()
            messages = [{"type": "http.request", "body": body}]

            async def receive():
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            scope = {
                "type": "http", "method": "POST", "path": CHAT, "query_string": b"", "root_path": "",
                "headers": [(b"content-type", b"application/json"), (b"host", b"testserver")],
            }  # fmt: skip
            task = asyncio.create_task(app(scope, receive, send))
            worker = app.routes[0].app._worker
            while not worker._growing:
                await asyncio.sleep(0.01)
            if stream:
                while len(sent) < 4:
                    await asyncio.sleep(0.01)
            gone.set()
            await asyncio.wait_for(task, 20)
            while worker._growing:
                await asyncio.sleep(0.01)
            return [worker.open_answers, worker._engine.running, len(sent)]

    open_answers, running, sent = asyncio.run(leave_early())
    assert (open_answers, running) == (0, 0)
    assert sent < 3000 if stream else sent == 0
