"""Whatever a model writes: no metric crashes, and what is no answer is never credited."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.data.geometry.shapes import Box, Box3D, Grounding, TimeSpan
from vlmkit.data.geometry.spaces import Relative1000, SourcePixels
from vlmkit.evaluation.extract.blocks import Block
from vlmkit.evaluation.metrics.base import ScoredMetric
from vlmkit.evaluation.metrics.detection import Detection3DAP, DetectionAP
from vlmkit.evaluation.metrics.document import TEDS, DocumentScore, FormulaEditDistance
from vlmkit.evaluation.metrics.grounding import (
    Counting,
    Mask,
    Pointing,
    PointShare,
    ReferringBox,
    TemporalGrounding,
)
from vlmkit.evaluation.metrics.multiple_choice import Choice, CircularChoice, MultipleChoice
from vlmkit.evaluation.metrics.needle import Needle, NeedleGrid
from vlmkit.evaluation.metrics.ocr import CharErrorRate, NormalizedEditDistance, WordErrorRate
from vlmkit.evaluation.metrics.sampling import PassAtK
from vlmkit.evaluation.metrics.short_answer import (
    ANLS,
    Containment,
    HarnessANLS,
    LenientRelaxedAccuracy,
    MmmuOpen,
    RelaxedAccuracy,
    StatedMatch,
)
from vlmkit.evaluation.metrics.vqa import VqaAccuracy
from vlmkit.evaluation.metrics.yes_no import HallusionBench, HallusionQuestion, Pope

SPACE = Relative1000()
BOX = Box(400, 400, 600, 600, SPACE)
CHOICE = Choice.of("B", ["a cat", "Paris", "none", "7 dogs"])
TABLE = "<table><tr><td>north</td><td>south</td></tr></table>"
CASES: dict[str, tuple[ScoredMetric, object]] = {
    "anls": (ANLS(), "Paris 1923"),
    "harness anls": (HarnessANLS(), "Paris 1923"),
    "relaxed": (RelaxedAccuracy(), "1923"),
    "lenient": (LenientRelaxedAccuracy(), "1923"),
    "stated": (StatedMatch(), "Paris 1923"),
    "containment": (Containment(), "Paris 1923"),
    "mmmu": (MmmuOpen(), "Paris 1923"),
    "vqa": (VqaAccuracy(), ["paris 1923"] * 10),
    "choice": (MultipleChoice(), CHOICE),
    "circular": (CircularChoice(), CHOICE),
    "pope": (Pope(), "yes"),
    "hallusion": (HallusionBench(), HallusionQuestion("yes", "chart", "1", "0", "0")),
    "referring": (ReferringBox(), BOX),
    "pointing": (Pointing(), BOX),
    "share": (PointShare(), Mask(np.ones((4, 4), bool), SourcePixels(4, 4))),
    "counting": (Counting(), 1923),
    "temporal": (TemporalGrounding(), TimeSpan(100, 200)),
    "cer": (CharErrorRate(), "Paris 1923"),
    "wer": (WordErrorRate(), "Paris 1923"),
    "ned": (NormalizedEditDistance(), "Paris 1923"),
    "formula": (FormulaEditDistance(), r"\frac{a}{b}"),
    "teds": (TEDS(), TABLE),
    "document": (DocumentScore(), [Block("text", "north"), Block("table", TABLE)]),
    "detection": (DetectionAP(["cup"]), [Grounding(BOX, "cup")]),
    "detection 3d": (Detection3DAP(["cup"]), [Grounding(Box3D((0, 0, 9), (1, 1, 1)), "cup")]),
    "needle": (NeedleGrid((1,), (0,)), Needle("Paris 1923", 1, 0)),
    "pass at k": (PassAtK(StatedMatch()), "Paris 1923"),
}
NO_ANSWER = [
    "",
    " \n\t",
    "<think>",
    "<think>Paris 1923, yes, B, 1923 dogs, 100 to 200 s",
    "<think>Paris 1923. The answer is B. Yes. 1923</think>",
    "</think>",
    "<|im_end|>",
    "?",
    "…",
    "nan",
    "NaN, inf, -inf, 1e999",
    "I choose none",
    "I do not know.",
    "A or B",
    "(A) or (B)",
    "A, B, C, D",
    "yes and no",
    "yes/no",
    "null",
    "{}",
    "[]",
    "[[[[]]]]",
    '{"bbox_2d": []}',
    '[{"bbox_2d": [NaN, NaN, NaN, NaN], "point_2d": [Infinity, 0], "bbox_3d": [], "label": "cup"}]',
    '[{"bbox_2d": [600, 600, 400, 400], "point_2d": "500,500", "label": "cup"}]',
    '{"bbox_2d": {"x": 500}, "start": null, "end": []}',
    "<table></table>",
    "$$ $$",
    "[" * 30_000,
    '{"bbox_2d":' * 5_000,
    "<table><tr><td>" * 200,
    "\\boxed{" * 5_000,
    "0" * 20_000,
    "\x00\ufffd\ud800",
]
LOWER_IS_BETTER = {"cer", "wer", "ned", "formula"}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_answer_is_not_credited(name):
    metric, target = CASES[name]
    for text in NO_ANSWER:
        row, failed = metric.scored(text, target)
        assert all(map(math.isfinite, row)), (name, text[:40], row)
        if name in LOWER_IS_BETTER:
            assert row[0] > 0.6 * (row[1] if len(row) > 1 else 1), (name, text[:40], row)
        elif not (name == "teds" and "<td>" in text):  # that is a table
            assert row[0] <= 0.35, (name, text[:40], row)
        if not text.strip() or text.startswith("<think>"):
            assert failed, (name, text)


PIECES = st.sampled_from(
    [
        *(
            "<think>",
            "</think>",
            "A",
            "(B)",
            " or ",
            "\\boxed{",
            "}",
            "```json",
            "[",
            "]",
            "{",
            "yes",
        ),
        *(
            '"bbox_2d": [1, 2, 3, 4]',
            '"label": "cup"',
            '"point_2d": [1, 2]',
            ", ",
            "\n",
            "NaN",
            "1e999",
        ),
        *(
            "12:34",
            " - ",
            "5 s",
            "the answer is ",
            "٣",
            "７",
            "½",
            "|",
            "\n|-|\n",
            "<td>",
            "$$",
            "\ud800",
        ),
        *(
            '"start": 1, "end": 2',
            '"bbox_3d": [1, 2, 3, 1, 1, 1, 0, 0, 0]',
            "<table>",
            "&",
            "\\\\",
            "%",
        ),
    ]
)


@settings(max_examples=60)
@given(st.lists(PIECES | st.text(max_size=4), max_size=14).map("".join))
def test_no_text_crashes_a_metric(text):
    for name, (metric, target) in CASES.items():
        row, _ = metric.scored(text, target)
        assert all(map(math.isfinite, row)), (name, row)


def test_all_results_are_plain_and_sound():
    for name, (metric, target) in CASES.items():
        metric.reset()
        for key, text in enumerate(NO_ANSWER):
            metric.update(text, target, key)
        result = metric.compute()
        json.dumps(result.to_dict(), allow_nan=False)
        assert result.n == len(NO_ANSWER), name
        assert len(metric.per_sample().scores) == len(NO_ANSWER)
        assert 5 / len(NO_ANSWER) <= result.parse_failure_rate <= 1, name
        metric.reset()


def test_a_text_beyond_the_limit_is_no_answer():
    metric = StatedMatch(max_chars=10)
    assert metric.scored("x" * 11, "x" * 11) == ([0], True)
