"""Progress of work on files."""

from __future__ import annotations

import io
import time

from rich.console import Console

from vlmkit.data.sources import progress
from vlmkit.data.sources.progress import FileProgress


def test_quick_work_is_silent(caplog, capsys):
    with caplog.at_level("INFO"), FileProgress("indexing a.jsonl", 100) as shown:
        shown.advance(100)
    assert (caplog.text, capsys.readouterr().err) == ("", "")


def test_a_log_gets_a_line_now_and_then(caplog):
    with (
        caplog.at_level("INFO"),
        FileProgress("indexing", 4, silent_s=0, line_every_s=0.05) as shown,
    ):
        shown.advance(1)
        shown.advance(1)
        time.sleep(0.06)
        shown.advance(1)
    assert [record.getMessage() for record in caplog.records] == ["indexing: 25%", "indexing: 75%"]


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=80)
    )
    with FileProgress("indexing", 4, silent_s=0) as shown:
        shown.advance(1)
        shown.advance(1)
    assert "indexing" in screen.getvalue()
    assert "50%" in screen.getvalue()
