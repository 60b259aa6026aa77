"""The endpoint answers as `vlmkit.generate` does, at once and as a stream."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serving.served import CHAT, Tiny, as_data_url, events, image, joined, png, user, video
from vlmkit.assets import asset_path
from vlmkit.data.media import ImageBlob, InMemory, VideoFile
from vlmkit.data.record import ImagePart, VideoPart
from vlmkit.inspection.tokens import Vocabulary
from vlmkit.models.generation import Sampling

CLIP = asset_path("video", "big_buck_bunny.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "a red one.png").write_bytes(png())
    shutil.copy(CLIP, folder / "clip.mp4")
    return folder


@pytest.fixture(scope="module")
def client(tiny: Tiny, folder: Path):
    with tiny.client(roots=(folder,)) as client:
        yield client


def test_greedy_text_is_that_of_generate(client: TestClient, tiny: Tiny, folder: Path) -> None:
    red = ImagePart(ImageBlob(InMemory(png(), "red")))
    clip = VideoPart(VideoFile(CLIP), 1.0, 3.0)
    cases = [
        (user("Hello!"), ("Hello!",)),
        (user(image(as_data_url(png())), "What?"), (red, "What?")),
        (user(image((folder / "a red one.png").as_uri()), "What?"), (red, "What?")),
        (
            user(video((folder / "clip.mp4").as_uri(), video_start=1, video_end=3), "And?"),
            (clip, "And?"),
        ),
        (
            user(
                video(as_data_url(CLIP.read_bytes(), "video/mp4"), video_start=1, video_end=3),
                "And?",
            ),
            (clip, "And?"),
        ),
    ]
    seen = set()
    for messages, parts in cases:
        wanted = tiny.expected(*parts)
        body = {"messages": messages, "max_tokens": 16}
        whole = client.post(CHAT, json=body)
        assert whole.status_code == 200, whole.text
        answer = whole.json()
        (choice,) = answer["choices"]
        assert choice["message"] == {
            "role": "assistant",
            "content": wanted.text,
            "refusal": None,
        }
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 16

        options = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = client.post(CHAT, json={**body, **options})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        chunks = events(streamed.text)
        assert joined(chunks) == wanted.text
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert chunks[-2]["choices"][0]["finish_reason"] == "length"
        assert chunks[-1]["usage"] == answer["usage"]
        assert (
            sum(bool(joined([chunk])) for chunk in chunks) >= 5
        )  # as it is written, not at the end
        seen.add(wanted.text)
    assert len(seen) == 3


def test_turns_and_settings_reach_the_model(client: TestClient, tiny: Tiny) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        *user("Hi"),
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
        *user("Go on"),
    ]  # fmt: skip
    plain = client.post(CHAT, json={"messages": messages}).json()
    assert plain["usage"]["prompt_tokens"] > 60
    assert plain["usage"]["completion_tokens"] == 16  # the server's default

    settings = {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 3,
                "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1}  # fmt: skip
    wanted = tiny.expected("Hi", sampling=Sampling(**settings))
    made = client.post(CHAT, json={"messages": user("Hi"), **settings, "n": 3}).json()
    assert made["choices"][0]["message"]["content"] == wanted.text
    assert len({choice["message"]["content"] for choice in made["choices"]}) == 3
    assert made["usage"]["completion_tokens"] == 48
    chunks = events(
        client.post(CHAT, json={"messages": user("Hi"), **settings, "n": 3, "stream": True}).text
    )
    for choice in made["choices"]:
        assert joined(chunks, choice["index"]) == choice["message"]["content"]

    body = {"messages": user("Hi"), "temperature": 2.0}
    free = {client.post(CHAT, json=body).json()["choices"][0]["message"]["content"] for _ in "ab"}
    assert len(free) == 2  # without a seed each draws its own


def test_stop_strings_and_log_probabilities(client: TestClient, tiny: Tiny) -> None:
    whole = tiny.expected("Hi", top_logprobs=2)
    assert whole.text
    assert whole.logprobs
    stop = whole.text[4:7]
    body = {"messages": user("Hi"), "logprobs": True, "top_logprobs": 2}
    for stream in (False, True):
        response = client.post(CHAT, json={**body, "stop": stop, "stream": stream})
        if stream:
            chunks = events(response.text)
            assert joined(chunks) == whole.text[: whole.text.index(stop)]
            last = chunks[-1]["choices"][0]
        else:
            (last,) = response.json()["choices"]
            assert last["message"]["content"] == whole.text[: whole.text.index(stop)]
        assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)

    vocabulary = Vocabulary(tiny.processor.tokenizer)
    wanted = [
        (list(vocabulary.content(token)), pytest.approx(own.logprob, abs=1e-6), 2)
        for token, own in zip(whole.token_ids, whole.logprobs, strict=True)
    ]
    at_once = client.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    streamed = [
        token
        for chunk in events(client.post(CHAT, json={**body, "stream": True}).text)
        for token in (chunk["choices"][0]["logprobs"] or {}).get("content", ())
    ]
    assert streamed == at_once
    assert [(t["bytes"], t["logprob"], len(t["top_logprobs"])) for t in at_once] == wanted
    assert at_once[0]["top_logprobs"][0]["token"] == at_once[0]["token"]


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (b"", 400, None, "not a chat request"),
        (b"{", 400, None, "not a chat request"),
        (b"[]", 400, None, "not a chat request"),
        (b"[" * 100_000, 400, None, "not a chat request"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, None, "not a chat request"),
        ({}, 400, "messages", "required"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": "Hi"}, 400, "messages", "valid array"),
        ({"messages": [{"role": "cat", "content": "Hi"}]}, 400, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing"),
        ({"messages": user({"type": "audio"})}, 400, "messages[0].content[0]", "image_url"),
        (
            {"messages": user({"type": "image_url", "image_url": "cat.png"})},
            400,
            "messages[0].content[0].image_url",
            "object",
        ),
        (
            {"messages": user({"type": "text", "text": "a", "path": "/etc/passwd"})},
            400,
            "messages[0].content[0].path",
            "does not know it",
        ),
        ({"messages": user("Hi"), "tools": []}, 400, "tools", "does not know it"),
        ({"messages": user("Hi"), "temprature": 1}, 400, "temprature", "does not know it"),
        ({"messages": user("Hi"), "temperature": "1"}, 400, "temperature", "number"),
        ({"messages": user("Hi"), "temperature": -1}, 400, "temperature", "must be finite"),
        ({"messages": user("Hi"), "top_p": 0}, 400, "top_p", "(0, 1]"),
        ({"messages": user("Hi"), "seed": -1}, 400, "seed", "not be negative"),
        ({"messages": user("Hi"), "max_tokens": 0}, 400, "max_tokens", "from 1"),
        ({"messages": user("Hi"), "max_tokens": True}, 400, "max_tokens", "integer"),
        ({"messages": user("Hi"), "max_tokens": 2, "max_completion_tokens": 3}, 400,
         "max_completion_tokens", "differ"),
        ({"messages": user("Hi"), "stop": ""}, 400, "stop", "empty"),
        ({"messages": user("Hi"), "top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        ({"messages": user("Hi"), "stream_options": {}}, 400, "stream_options", "needs stream"),
        ({"messages": user("Hi"), "n": 0}, 400, "n", "greater than or equal to 1"),
        ({"messages": user("Hi"), "model": "gpt"}, 404, "model", "it is 'tiny'"),
        ({"messages": user(image("https://example.org/a.png"))}, 400, "messages", "nothing is fetched"),
        ({"messages": user(image("/etc/passwd"))}, 400, "messages", "nothing is fetched"),
        ({"messages": user(image("data:image/png;base64,AAAA"))}, 400, "messages", "cannot be decoded"),
        ({"messages": user(image("data:,AAAA"))}, 400, "messages", "must read data:"),
        ({"messages": user(video(as_data_url(png())))}, 400, "messages", "video messages[0].content[0]"),
        ({"messages": user(image(as_data_url(png(2000, 2))))}, 400, "messages", "aspect"),
        ({"messages": [{"role": "system", "content": [image(as_data_url(png()))]}]}, 400, "messages",
         "system messages cannot hold pictures"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client: TestClient, body, status, param, words) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = client.post(CHAT, headers={"Content-Type": "application/json"}, **sent)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["param"], words in error["message"]) == (param, True), error
    assert len(error["message"]) < 400


def test_other_paths_and_methods(client: TestClient, folder: Path) -> None:
    (about,) = client.get("/v1/models").json()["data"]
    assert about["id"] == "tiny"
    assert about["limits"]["frames"] == 768
    assert client.get("/health").json() == {"status": "ok", "answers": 0}
    assert client.get(CHAT).status_code == 405
    assert client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/chat.js").headers["content-type"].startswith("text/javascript")
    body = '{"messages": [{"role": "user", "content": "Hi"}]}'
    response = client.post(CHAT, content=body, headers={"Content-Type": "text/plain"})
    assert response.status_code == 415  # what another site's page could send
