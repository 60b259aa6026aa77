"""The built-in benchmarks as the command line builds them, and how to answer them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vlmkit.build import build, compose_config
from vlmkit.data.geometry.shapes import TimeSpan
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.metrics.needle import Needle
from vlmkit.evaluation.question import Question

FILES = (
    *("needle_image", "needle_video", "synthetic_ocr", "synthetic_counting"),
    *("synthetic_grounding", "synthetic_chart", "synthetic_moments", "synthetic_document"),
)
NAMES = (
    *("needle_image_text", "needle_image_object", "needle_image_number", "needle_document"),
    *("needle_video_text", "needle_video_object", "needle_video_number"),
    *FILES[2:],
)


@lru_cache(maxsize=1)
def benchmarks() -> dict[str, Benchmark]:
    config = compose_config(f"benchmark=[{','.join(FILES)}]", config_name="evaluate")
    return {str(name): build(node) for name, node in config.benchmarks.items()}


def right(question: Question) -> str:
    """The truth as a model would write it."""
    target: Any = question.target
    if "right" in question.conversation.meta:
        return str(question.conversation.meta["right"])
    if isinstance(target, Needle):
        return str(target.answer)
    if isinstance(target, TimeSpan):
        return f"{target.start_s} - {target.end_s} seconds"
    return str(target)
