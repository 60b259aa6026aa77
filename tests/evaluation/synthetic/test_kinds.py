"""The truth of each kind, held against the pixels that were drawn."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import ImageColor

from tests.evaluation.synthetic.built_in import benchmarks
from vlmkit.data.record import ImagePart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.extract.blocks import document_blocks
from vlmkit.evaluation.synthetic.charts import ReadChart
from vlmkit.evaluation.synthetic.documents import ParseDocument
from vlmkit.evaluation.synthetic.fonts import FONTS, check_glyphs, font, text_width
from vlmkit.evaluation.synthetic.generated import GeneratedQuestions, pictures
from vlmkit.evaluation.synthetic.moments import GroundMoments
from vlmkit.evaluation.synthetic.needle_pages import NeedleInPages
from vlmkit.evaluation.synthetic.reading import ReadText


def plan_of(question) -> tuple[Any, ...]:
    """What the first picture is drawn from."""
    draw = next(pictures(question.conversation)).draw  # type: ignore[attr-defined]
    assert isinstance(draw, partial)
    return draw.args


def test_boxes_are_tight():
    questions = benchmarks()["synthetic_grounding"].questions
    for i in range(12):
        question = questions[i]
        box = question.target
        x1, y1, x2, y2 = (int(number) for number in (box.x1, box.y1, box.x2, box.y2))
        pixels = np.asarray(next(pictures(question.conversation)).open()).astype(int)
        paper = ImageColor.getrgb(plan_of(question)[1])
        inked = (abs(pixels - paper) > 2).any(axis=2)
        inside = inked[y1:y2, x1:x2]
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.any()
        around = inked[y1 - 4 : y2 + 4, x1 - 4 : x2 + 4]
        assert around.sum() == inside.sum()


def test_as_many_are_drawn_as_are_counted():
    questions = benchmarks()["synthetic_counting"].questions
    for i in range(18):
        question = questions[i]
        placed = plan_of(question)[0]
        asked = question.conversation.question.split(": ")[1].split("?")[0]
        assert sum(thing == asked for thing, *_ in placed) == question.target == i % 9 + 1


def test_bars_are_as_high_as_their_values():
    questions = GeneratedQuestions(ReadChart(most_series=1, written_share=0.0), 12)
    for i in (0, 1, 2, 6):
        (chart, *_) = plan_of(questions[i])
        assert not chart.lines
        pixels = np.asarray(next(pictures(questions[i].conversation)).open()).astype(int)
        colours = [
            ImageColor.getrgb(c)
            for c in ("#4c8bb5", "#d98f3f", "#7aa656", "#b3679b", "#8f7fd0", "#c5605a")
        ]
        colour = colours[chart.first_colour]
        heights = (abs(pixels - colour) <= 1).all(axis=2).sum(axis=0)
        wide = heights[heights > 40]  # columns of bars, not those of the legend
        values = chart.values[0]
        assert wide.max() / wide.min() == pytest.approx(
            max(values) / min(values), rel=0.05
        )  # measured 0.02
        largest = np.flatnonzero(heights == wide.max()).mean() / 560
        assert np.argmax(values) == int(largest * len(values) - 0.05)


def test_written_numbers_of_lines_keep_apart():
    questions = benchmarks()["synthetic_chart"].questions
    for i in range(60):
        (chart, *_) = plan_of(questions[i])
        values = np.array(chart.values)
        if chart.lines and len(values) > 1:
            assert (np.diff(np.sort(values, axis=0), axis=0) >= 9).all()


def test_a_thing_moves_when_it_is_said_to_move():
    questions = GeneratedQuestions(GroundMoments(things=1), 3)
    for i in range(3):
        question = questions[i]
        frames = [np.asarray(image.open()).astype(int) for image in pictures(question.conversation)]
        moved = [bool((a != b).any()) for a, b in pairwise(frames)]
        start, stop = question.target.start_s * 2, question.target.end_s * 2
        assert moved == [start <= i < stop for i in range(39)]


def test_pages_say_what_is_asked():
    kind = NeedleInPages(lengths=[6], depths=[0.4])
    question = GeneratedQuestions(kind, 1)[0]
    assert question.target.depth == 0.4
    images = [part.image for part in question.conversation.parts if isinstance(part, ImagePart)]
    facts = [image.draw.args[1] for image in images]  # type: ignore[attr-defined]
    city = question.conversation.question.split()[5].rstrip("?")
    assert facts[2] == f"The code of {city} is {question.target.answer}."
    assert sum(fact is not None for fact in facts) == 4
    for seed in range(40):
        lines = kind._lines(np.random.default_rng(seed), facts[2], 20)
        assert facts[2] in " ".join(lines)


def test_documents_are_what_their_markdown_says():
    questions = GeneratedQuestions(ParseDocument(), 8)
    for i in range(8):
        question = questions[i]
        assert document_blocks(question.conversation.meta["right"]) == question.target
        assert [block.kind for block in question.target].count("table") == 1
        page, width, height = plan_of(question)
        for left, top, words, name, size in page.texts:
            assert left >= 0
            assert left + text_width(words, name, size) <= width - 20
            assert top + size <= height - 20
        assert len(question.target) > 6
        markdown = question.conversation.meta["right"].split("\n\n")
        assert not markdown[-1].startswith("#")


def test_fonts_can_write_what_is_asked():
    for name in FONTS:
        check_glyphs("Quick: 1,234.56-XYZ", [name])
        missing = font(name, 20).getmask("\U0010fffe")
        assert bytes(font(name, 20).getmask("a")) not in (bytes(missing), b"")
    with pytest.raises(ConfigError, match="font DejaVuSans has no glyphs for 猫"):
        check_glyphs("a猫", ["DejaVuSans"])
    with pytest.raises(ConfigError, match="font Arial: matplotlib ships DejaVuSans"):
        ReadText(fonts=["Arial"])


def test_texts_fill_their_pictures_without_leaving_them():
    questions = benchmarks()["synthetic_ocr"].questions
    for i in range(9):
        pixels = np.asarray(next(pictures(questions[i].conversation)).open()).astype(int)
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        middle = pixels[pixels.shape[0] // 3 : -pixels.shape[0] // 3].std()
        assert middle > edge.std() * 1.2
