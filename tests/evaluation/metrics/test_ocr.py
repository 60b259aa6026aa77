from __future__ import annotations

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.text import CharErrorRate as TorchCER

from vlmkit.evaluation.metrics.ocr import (
    CharErrorRate,
    NormalizedEditDistance,
    WordErrorRate,
    compatible,
)

WORDS = st.lists(
    st.sampled_from(["stop", "go", "slow", "the", "x", "über"]), min_size=1, max_size=6
)
TEXTS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=5)


@settings(max_examples=40)
@given(TEXTS)
def test_error_rates_are_those_of_jiwer(pairs):
    chars, words, torch_chars = CharErrorRate(), WordErrorRate(), TorchCER()
    for key, (said, truth) in enumerate(pairs):
        chars.update(said, truth, key)
        words.update(said, truth, key)
    said, truth = map(list, zip(*pairs, strict=True))
    assert chars.compute().value == pytest.approx(jiwer.cer(truth, said))
    assert words.compute().value == pytest.approx(jiwer.wer(truth, said))
    assert chars.compute().value == pytest.approx(float(torch_chars(said, truth)), abs=1e-6)
    assert chars.per_sample().scores[0] == pytest.approx(jiwer.cer(truth[0], said[0]))


def test_full_width_forms_are_equal_and_nothing_misses_all():
    assert compatible("Ｓｔｏｐ　１２") == "Stop 12"
    metric = CharErrorRate()
    metric.update("Ｓｔｏｐ", "Stop", 1)
    metric.update("", "Stop", 2)
    result = metric.compute()
    assert (result.value, result.parse_failure_rate) == (0.5, 0.5)


def test_normalised_edit_distance_by_hand():
    metric = NormalizedEditDistance()
    for key, (said, truth) in enumerate([("abc", "abd"), ("abc", "abc"), ("", "abc"), ("zz", "a")]):
        metric.update(said, truth, key)
    assert list(metric.per_sample().scores) == pytest.approx([1 / 3, 0, 1, 1])
    assert metric.compute().value == pytest.approx((1 / 3 + 2) / 4)
