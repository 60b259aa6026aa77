"""`python -m vlmkit.serve`, as a user calls it, up to the loop that waits for requests."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'vlmkit[serve]'")

import uvicorn
from starlette.testclient import TestClient

from tests.commands import run_command
from tests.serving.served import CHAT, image, png, user
from tests.untrained import save_run
from vlmkit import serve

command = partial(run_command, serve.main)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What the command hands to the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLMKIT_API_KEY", raising=False)
    found: list[Any] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        found.extend([server.config.app, sockets[0].getsockname()])
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return found


def test_a_run_is_served(
    served: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "my run")
    (tmp_path / "red.png").write_bytes(png())
    arguments = [f"run={run}", "device=cpu", "port=0", "api_key=a, b", f"media_root={tmp_path}"]
    arguments += ["limits.queue=3", "limits.prompt_tokens=900", "budget.kv_tokens=1000"]
    assert command(*arguments, "sampling.repetition_penalty=1.1", "max_new_tokens=4") == 0
    app, (host, port) = served
    assert host == "127.0.0.1"
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out
    with TestClient(app, base_url=f"http://localhost:{port}") as client:
        assert client.get("/v1/models").status_code == 401
        client.headers["Authorization"] = "Bearer a, b"
        (about,) = client.get("/v1/models").json()["data"]
        assert about["id"] == "my run"
        assert about["limits"]["queue"] == 3
        assert about["defaults"]["repetition_penalty"] == 1.1
        asked = {"messages": user(image((tmp_path / "red.png").as_uri()), "What?")}
        answer = client.post(CHAT, json=asked).json()
        assert answer["usage"]["completion_tokens"] == 4
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either run="),
        (["run=none"], "none is not a run folder"),
        (["media_root=none"], "none is not a folder"),
        (["limits.queue=-1"], "queue must be a whole number from 0, got -1"),
        (["limits.prompt_tokens=99999"], "the longest prompt would not fit"),
        (["max_new_tokens=0"], "max_new_tokens must be"),
        (["sampling.top_p=7"], "top_p must lie in"),
        (["host=256.1.1.1"], "cannot listen there"),
        (["limits.prompt_token=9"], "Did you mean limits.prompt_tokens"),
    ],
)
def test_mistakes_are_named(
    served: list[Any], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("port=0", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not served


def test_a_port_that_is_taken(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command("run=none", f"port={taken.getsockname()[1]}") == 2
    assert "cannot listen there" in capsys.readouterr().err


def test_open_servers_are_open_under_any_name() -> None:
    assert serve.allowed_hosts("0.0.0.0") == ["*"]
    assert "localhost" in serve.allowed_hosts("127.0.0.1")
    assert serve.is_local("::1")
    assert not serve.is_local("example.org")
