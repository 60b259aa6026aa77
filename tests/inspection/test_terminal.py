"""The short form: what is scored is bold, and nothing of the data steers the terminal."""

from __future__ import annotations

from rich.console import Console

from tests.inspection import gallery
from vlmkit.inspection.terminal import STYLES, sample_text, summary
from vlmkit.inspection.tokens import Vocabulary
from vlmkit.inspection.view import Kind


def printed(samples: int = 3, width: int = 100) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False, quiet=True)
    batch = gallery.everything()
    vocabulary = Vocabulary(gallery.processor().tokenizer)
    with console.capture() as captured:
        console.quiet = False
        console.print(summary(batch, vocabulary, samples), highlight=False)
    return captured.get()


def test_it_names_rows_samples_and_what_was_left_out():
    text = printed()
    assert "step 100, micro-batch 0" in text
    assert "1 boxes, 1 chat, 1 emoji" in text
    assert "boxes.jsonl:17" in text
    assert "[image 1 · 20×11 = 220 tokens]" in text
    assert "left out: missing_file, boxes: image photos/0005.jpg" in text


def test_samples_beyond_the_first_are_counted():
    assert "… and 2 more samples in row 0" in printed(samples=1)


def test_nothing_steers_the_terminal():
    text = printed()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>" in text  # as text


def test_scored_text_stands_out():
    batch = gallery.everything()
    row = batch.rows[0]
    sample = row.samples[0]
    text = sample_text(row, sample, Vocabulary(gallery.processor().tokenizer), most=10_000)
    scored = "".join(
        text.plain[span.start : span.end]
        for span in text.spans
        if span.style == STYLES[Kind.SUPERVISED]
    )
    answers = [m.text for m in gallery.boxes().messages if m.role == "assistant"]
    assert scored == "".join(f"{answer}<|im_end|>" for answer in answers)
