"""From what a row says to something that can be opened."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.data.sources.writers import png
from vlmkit.data.media import ImageBlob, ImageFile, InMemory, VideoBlob, VideoFile
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Row
from vlmkit.errors import ConfigError, DataError, MediaError, Reason, RecordError


def node(value):
    return Row({"image": value}, "a.jsonl:3")["image"]


def test_paths():
    assert Media().image(node("b/c.png")) == ImageFile(Path("b/c.png"))
    assert Media().image(node("/d.png")) == ImageFile(Path("/d.png"))
    assert Media().video(node("../v.mp4")) == VideoFile(Path("../v.mp4"))
    assert Media(root="/pictures").image(node("b/../c.png")) == ImageFile(Path("/pictures/c.png"))
    assert Media(root="/pictures/").image(node("/pictures/c.png")) == ImageFile(
        Path("/pictures/c.png")
    )
    assert Media().image(node("file:///a%20b.png")) == ImageFile(Path("/a b.png"))
    assert Media(root="~").image(node("c.png")) == ImageFile(Path.home() / "c.png")


@pytest.mark.parametrize(
    "path",
    ["../c.png", "b/../../c.png", "/picturesless/c.png", "/etc/passwd", "file:///etc/passwd"],
)
def test_nothing_outside_the_root_is_opened(path):
    with pytest.raises(
        MediaError, match=r"a.jsonl:3 image: .* outside the media root /pictures; .*leave"
    ):
        Media(root="/pictures").image(node(path))


def test_content_in_the_row():
    image = Media().image(node("data:image/png;base64," + base64.b64encode(png()).decode()))
    assert image.size() == (3, 4)
    for value in (png(), {"bytes": png(), "path": "x.png"}):
        image = Media().image(node(value))
        assert image.size() == (3, 4)
        assert image.name.startswith("a.jsonl:3 image")
    assert Media().image(node({"bytes": None, "path": "x.png"})) == ImageFile(Path("x.png"))
    assert Media().image(node({"url": "file:///x.png"})) == ImageFile(Path("/x.png"))
    blob = InMemory(b"", "blob")
    assert Media().image(node(blob)) == ImageBlob(blob)
    assert Media().video(node(b"x")) == VideoBlob(InMemory(b"x", "a.jsonl:3 image"))


def test_names_of_a_sample_come_first():
    blob = InMemory(b"", "blob")
    media = Media(root="/pictures").with_members({"0.jpg": blob})
    assert media.image(node("0.jpg")) == ImageBlob(blob)
    assert media.image(node("1.jpg")) == ImageFile(Path("/pictures/1.jpg"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "it is missing; it must be text"),
        (3, "it is a number"),
        ([], "it is a list"),
        ({}, "it is missing"),
        ({"bytes": "x"}, "bytes: it is not bytes"),
        ({"url": {"url": "x"}}, "url: it is an object"),
        ("", "it names no file"),
        ("a\0b", "it names no file"),
        ("\ud800.png", "half a character"),
        ("file://host/x.png", "names no file of this machine"),
        ("file://[", "is no URL"),
        ("s3://bucket/x.png", "s3:// cannot be opened; copy"),
        ("data:image/png,xyz", "base64"),
    ],
)
def test_mistakes_name_the_row_and_a_remedy(value, words):
    with pytest.raises(DataError, match=rf"a.jsonl:3 image.*{words}"):
        Media().image(node(value))
    with pytest.raises(DataError):
        Media(root="/pictures").video(node(value))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "HTTPS://127.0.0.1:1/x.png"])
def test_the_network_is_refused_unless_allowed(url):
    with pytest.raises(DataError, match=r"a.jsonl:3 .*allow_network: true") as caught:
        Media().image(node(url))
    assert caught.value.code is Reason.NETWORK_REFUSED
    assert not isinstance(caught.value, RecordError)


REDIRECTIONS = {
    "/to-file": "file:///etc/passwd",
    "/to-ftp": "ftp://127.0.0.1/x",
    "/to-picture": "/picture",
}


class Handler(BaseHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path.startswith("/to-"):
            self.send_response(302)
            self.send_header("Location", REDIRECTIONS[self.path])
            self.end_headers()
            return
        content = png()
        self.send_response(200)
        if self.path in ("/picture", "/short"):
            self.send_header("Content-Length", str(len(content) + 9 * (self.path == "/short")))
        self.end_headers()
        if self.path == "/slow":
            for byte in content:
                try:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.05)
        elif self.path == "/silent":
            time.sleep(1)
        else:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/picture", "/to-picture", "/no-length"])
def test_what_is_fetched_is_kept(server, tmp_path, path):
    media = Media(allow_network=True, cache=tmp_path / "kept")
    Handler.requests.clear()
    image = media.image(node(server + path))
    assert Handler.requests == []  # not before it is needed
    assert image.size() == (3, 4)
    asked = list(Handler.requests)
    assert asked[0] == path
    assert media.image(node(server + path)).open().size == (4, 3)
    assert Handler.requests == asked
    assert len(os.listdir(tmp_path / "kept")) == 1


@pytest.mark.parametrize(
    ("path", "limits", "reason", "words"),
    [
        ("/missing", {}, Reason.MISSING_FILE, "the server says 404"),
        ("/to-file", {}, Reason.UNREADABLE, "the server says 302 .*file:///etc/passwd"),
        ("/to-ftp", {}, Reason.UNREADABLE, "the server says 302 redirected elsewhere"),
        ("/picture", {"max_bytes": 9}, Reason.TOO_LARGE, "larger than max_bytes, 9"),
        ("/no-length", {"max_bytes": 9}, Reason.TOO_LARGE, "larger than max_bytes, 9"),
        ("/slow", {"timeout_s": 0.3}, Reason.TIMEOUT, "within timeout_s, 0.3 s"),
        ("/silent", {"timeout_s": 0.3}, Reason.TIMEOUT, "within timeout_s, 0.3 s"),
        ("/short", {}, Reason.UNREADABLE, r"\d+ of \d+ bytes arrived|cannot be fetched"),
        ("/a b", {}, Reason.UNREADABLE, "cannot be fetched"),
    ],
)
def test_what_cannot_be_fetched(server, tmp_path, path, limits, reason, words):
    media = Media(allow_network=True, cache=tmp_path / "kept", **limits)
    start = time.monotonic()
    with pytest.raises(MediaError, match=words) as caught:
        media.image(node(server + path)).open()
    assert caught.value.code is reason
    assert server in str(caught.value)
    assert time.monotonic() - start < 2
    assert not (tmp_path / "kept").exists()


def test_nobody_listens(tmp_path):
    media = Media(allow_network=True, cache=tmp_path)
    with pytest.raises(MediaError, match=r"127.0.0.1:1/x: cannot be fetched"):
        media.image(node("http://127.0.0.1:1/x")).open()


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    media = Media(allow_network=True, cache=tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot be kept .*cache"):
        media.image(node(server + "/picture")).open()
