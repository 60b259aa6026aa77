"""The report on coordinates: each finding on data made for it, clean data, all spaces, broken input."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from vlmkit.data.geometry.likely_space import PUBLISHED_RESIZING, Kind, Size
from vlmkit.data.geometry.lint import MAX_EXAMPLES, Finding, LintReport, Sample
from vlmkit.data.geometry.shapes import (
    Box,
    Crop,
    Grounding,
    Picture,
    Relative1000,
    SourcePixels,
    TimeSpan,
)
from vlmkit.data.media import ImageArray, ImageFile, VideoFile
from vlmkit.data.record import (
    Conversation,
    GroundingPart,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    VideoPart,
)

FULL_HD = [(1080, 1920)]
VGA = [(480, 640)]
PHOTOS = [(480, 640), (640, 480), (375, 500), (427, 640)]


def picture(height: int, width: int) -> ImagePart:
    return ImagePart(ImageArray(np.zeros((height, width, 3), np.uint8)))


def turns(user: Sequence[Part], answer: Sequence[Part], **fields) -> Conversation:
    messages = (
        Message(role="user", parts=tuple(user)),
        Message(role="assistant", parts=tuple(answer), **fields),
    )
    return Conversation(messages=messages, source="made", origin="made.jsonl:1")


def extent_of(space: str, size: Size) -> tuple[float, float]:
    height, width = PUBLISHED_RESIZING[0](size) if space == "resized" else size
    return {"relative": (1000, 1000), "floats": (1, 1)}.get(space, (width, height))


def made(
    space: str, sizes: Sequence[Size], num: int = 200, seed: int = 0, num_boxes: int = 3
) -> Iterator[Sample]:
    """Samples with valid boxes; some objects are cut off by the picture's border."""
    rng = np.random.default_rng(seed)
    for i in range(num):
        size = sizes[rng.integers(len(sizes))]
        entries = []
        for _ in range(num_boxes):
            sides = []
            for extent in extent_of(space, size):
                start = rng.uniform(0, 0.8)
                end = 1 if rng.random() < 0.15 else rng.uniform(start + 0.1, 1)
                sides.append(
                    [round(n * extent, 4 if space == "floats" else 0) for n in (start, end)]
                )
            (x1, x2), (y1, y2) = sides
            numbers = [y1, x1, y2, x2] if space == "swapped" else [x1, y1, x2, y2]
            whole = [n if space == "floats" else int(n) for n in numbers]
            entries.append({"bbox_2d": whole, "label": f"thing {i}"})
        texts = ["Where are they?", f"```json\n{json.dumps(entries)}\n```"]
        yield Sample(texts=texts, sizes=[size], source=space, origin=f"{space}.jsonl:{i}")


def one(text: str, sizes: Sequence[Size] | None = ((480, 640),)) -> LintReport:
    return LintReport.of([Sample(texts=[text], sizes=sizes, origin="here:3")])


@pytest.mark.parametrize("sizes", [FULL_HD, VGA, PHOTOS, [(992, 1008)], [(3000, 4000), (48, 64)]])
@pytest.mark.parametrize(
    ("space", "kind", "swapped"),
    [
        ("relative", Kind.RELATIVE_1000, False),
        ("floats", Kind.RELATIVE_1, False),
        ("source", Kind.SOURCE_PIXELS, False),
        ("resized", Kind.RESIZED_PIXELS, False),
        ("swapped", Kind.SOURCE_PIXELS, True),
    ],
)
def test_two_hundred_samples_show_their_space(
    space: str, kind: Kind, swapped: bool, sizes: Sequence[Size]
) -> None:
    report = LintReport.of(made(space, sizes))
    verdict = report.sources[space].verdict()
    assert (verdict.kind, verdict.swapped) == (kind, swapped)
    assert "100 % within" in verdict.evidence
    assert report.is_clean == (space == "relative")


def test_the_evidence_is_said() -> None:
    report = LintReport.of(made("source", FULL_HD))
    assert report.sources["source"].verdict().evidence == (
        "90.3 % beyond 1000; 9.67 % within 0 to 1000, up to 1.00 of it; "
        "100 % within source pixels, up to 1.00 of it; 0.167 % end at 999 or 1000"
    )


@pytest.mark.parametrize("num", [1, 5])
def test_few_boxes_in_small_pictures_are_ambiguous(num: int) -> None:
    """640 x 480 source pixels are valid from 0 to 1000, too; it takes many to see that none is more."""
    source = LintReport.of(made("source", VGA, num=num, num_boxes=1)).sources["source"]
    verdict = source.verdict()
    assert verdict.kind is Kind.AMBIGUOUS
    assert {Kind.RELATIVE_1000, Kind.SOURCE_PIXELS} <= {c.kind for c in verdict.candidates}
    assert "100 % within 0 to 1000" in verdict.evidence
    assert "100 % within source pixels" in verdict.evidence


def test_y_before_x_from_0_to_1000_cannot_be_seen() -> None:
    """Known limit: no coordinate gives it away, only the key that such data often have."""
    swapped = [
        Sample(
            texts=[sample.texts[1].replace("bbox_2d", "box_2d")], sizes=sample.sizes, source="yx"
        )
        for sample in made("relative", VGA)
    ]
    source = LintReport.of(swapped).sources["yx"]
    assert source.verdict().kind is Kind.RELATIVE_1000
    assert source.findings == {Finding.Y_FIRST_KEY: 600}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(1, 120),
    num_boxes=st.integers(1, 4),
    sizes=st.lists(
        st.tuples(st.integers(100, 3000), st.integers(100, 3000)), min_size=1, max_size=4
    ),
)
def test_valid_boxes_are_never_flagged(
    seed: int, num: int, num_boxes: int, sizes: list[Size]
) -> None:
    report = LintReport.of(made("relative", sizes, num, seed, num_boxes))
    source = report.sources["relative"]
    assert not source.findings
    assert source.verdict().may_be_relative
    assert source.num_shapes == num * num_boxes
    assert report.is_clean


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ('"bbox_2d": [500, 10, 20, 900]', [Finding.INVERTED]),
        ('"bbox_2d": [10, 20, 10, 900]', [Finding.ZERO_AREA]),
        ('"bbox_2d": [-5, 20, 10, 90]', [Finding.NEGATIVE]),
        ('"bbox_2d": [5, 20, 10, 1001]', [Finding.BEYOND_1000, Finding.IMPOSSIBLE]),
        ('"bbox_2d": [0.1, 0.2, 0.5, 1]', [Finding.WITHIN_1]),
        ('"bbox_2d": [10.5, 20, 30, 40]', [Finding.FRACTIONAL]),
        ('"bbox_2d": [10, 20, 30]', [Finding.MALFORMED]),
        ('"bbox_2d": [1, 2, 3, 4], "bbox_2d": [1, 2, 3, 4]', [Finding.DUPLICATE]),
        ('"box_2d": [10, 20, 30, 40]', [Finding.Y_FIRST_KEY]),
        ('"point_2d": [1e999, 4]', [Finding.BEYOND_1000, Finding.IMPOSSIBLE]),
        ("<box>(10,20),(5,900)</box>", [Finding.INVERTED]),
        ('"point_2d": [5, 5]', []),
        ('"point_2d": [0, 0]', []),
        ('"bbox_2d": [0, 0, 1000, 1000]', []),
        ("nothing at all", []),
    ],
)
def test_each_finding(text: str, findings: list[Finding]) -> None:
    report = one(text)
    source = report.sources[""]
    assert dict(source.findings) == dict.fromkeys(findings, 1)
    assert list(source.examples) == findings
    assert report.is_clean == (not findings)
    for finding in findings:
        (example,) = source.examples[finding]
        assert example.startswith("here:3: ")
        assert example.endswith("in 480x640 (height x width)")


def test_x_and_y_swapped() -> None:
    report = one('"bbox_2d": [100, 900, 700, 1800]', [(1080, 1920)])
    assert dict(report.sources[""].findings) == {Finding.BEYOND_1000: 1, Finding.SWAPPED: 1}


def test_the_same_box_in_question_and_answer_is_no_duplicate() -> None:
    text = '{"bbox_2d": [1, 2, 3, 4]}'
    report = LintReport.of([Sample(texts=[text, text], sizes=[(480, 640)])])
    assert report.is_clean
    assert one("[1, 2, 3, 4] and [1, 2, 3, 4]").is_clean


def test_boxes_without_a_picture() -> None:
    report = one('{"bbox_2d": [1, 2, 3, 4]} and [1, 2, 3, 4]', sizes=[])
    source = report.sources[""]
    assert dict(source.findings) == {Finding.NO_PICTURE: 1}
    assert source.num_shapes == 0
    assert source.verdict().evidence == "no boxes or points"


def test_pictures_of_unknown_size() -> None:
    report = one('{"bbox_2d": [1, 2, 3, 1400]}', sizes=None)
    verdict = report.sources[""].verdict()
    assert verdict.kind is Kind.UNKNOWN
    assert verdict.evidence == "100 % beyond 1000; 100 % in pictures of unknown size"
    assert dict(report.sources[""].findings) == {Finding.BEYOND_1000: 1}
    assert one('{"bbox_2d": [1, 2, 3, 4]}', sizes=[(0, 5)]).sources[""].num_unsized == 1


def test_boxes_of_another_raster_altogether() -> None:
    source = one('"bbox": [5000, 20, 9000, 90], "bbox": [1, 2, 7000, 8000]').sources[""]
    assert source.verdict().kind is Kind.UNKNOWN
    assert "100 % fits no known space" in source.verdict().evidence


def test_x_y_width_height_is_suspected() -> None:
    rng = np.random.default_rng(0)
    report = LintReport()
    for _ in range(100):
        x, y = rng.integers(0, 700, 2)
        width, height = (int(n) for n in rng.integers(10, 300, 2))
        report.add(Sample(texts=[f'"bbox": [{x}, {y}, {width}, {height}]'], sizes=[(480, 640)]))
    assert "perhaps x, y, width, height" in report.sources[""].verdict().evidence


def test_conversations_are_read_everywhere() -> None:
    """Questions, answers, thoughts and calls; not system prompts, nor what tools say."""
    box = "[10, 20, 30, 40]"
    conversation = Conversation(
        messages=(
            Message(role="system", parts=(TextPart(f'"bbox_2d": {box}'),)),
            Message(role="user", parts=(picture(48, 64), TextPart(f"What is in {box}?"))),
            Message(
                role="assistant",
                thinking=f"<box>{box}</box>",
                parts=(TextPart(f'"bbox_2d": {box}'),),
                tool_calls=(
                    ToolCall("zoom", {"bbox_2d": [10, 20, 30, 40], "img_idx": 0}),
                    ToolCall("zoom", f'{{"bbox": {box}}}'),
                ),
            ),
            Message(role="tool", parts=(picture(20, 20), TextPart(f'"bbox_2d": {box}'))),
        ),
        source="zoom",
    )
    source = LintReport.of([conversation]).sources["zoom"]
    assert (source.num_samples, source.num_shapes, source.num_bare) == (1, 5, 1)


def test_typed_shapes_are_read_as_their_text() -> None:
    inside = Grounding(Box(64, 48, 640, 480, SourcePixels(640, 480)), "a")
    crop = Crop(Box(0, 0, 500, 500, Relative1000()))
    items = (
        inside,
        Grounding(Box(0, 0, 1000, 1000, Relative1000(on=crop))),
        Grounding(TimeSpan(1, 2)),
    )
    report = LintReport.of([turns([picture(480, 640)], [GroundingPart(items)])])
    assert report.is_clean
    assert (report.sources["made"].num_shapes, report.sources["made"].num_at_1000) == (2, 2)
    beyond = Grounding(Box(0, 0, 700, 480, SourcePixels(640, 480, on=Picture(0))))
    report = LintReport.of([turns([picture(480, 640)], [GroundingPart((beyond,))])])
    assert report.sources["made"].examples[Finding.BEYOND_1000] == [
        "made.jsonl:1: bbox_2d [0, 0, 1094, 1000] in 480x640 (height x width)"
    ]


def test_pictures_that_cannot_be_read_and_videos(tmp_path: Path) -> None:
    answer = [TextPart('{"bbox_2d": [1, 2, 3, 4]}')]
    missing = turns([ImagePart(ImageFile(tmp_path / "missing.png"))], answer)
    video = turns([VideoPart(VideoFile(tmp_path / "missing.mp4"))], answer)
    report = LintReport.of([missing, video])
    assert report.is_clean
    assert (report.sources["made"].num_shapes, report.sources["made"].num_unsized) == (2, 2)
    silent = turns([ImagePart(ImageFile(tmp_path / "missing.png"))], [TextPart("no boxes")])
    assert LintReport.of([silent]).is_clean  # its header was not read


def test_memory_is_constant_and_the_order_of_sources_does_not_matter() -> None:
    samples = [*made("source", FULL_HD, 60), *made("floats", VGA, 60)]
    report, backwards = LintReport.of(samples), LintReport()
    for sample in [*samples[60:], *samples[:60]]:
        backwards.add(sample)
    assert {name: s.verdict() for name, s in report.sources.items()} == {
        name: s.verdict() for name, s in backwards.sources.items()
    }
    for source in report.sources.values():
        assert max(map(len, source.examples.values())) <= MAX_EXAMPLES
        assert sum(map(len, source.examples.values())) <= MAX_EXAMPLES * len(Finding)
    first = report.sources["floats"].examples[Finding.WITHIN_1]
    assert len(first) == MAX_EXAMPLES
    assert first[0].startswith("floats.jsonl:0: bbox_2d [0.")


def test_the_table() -> None:
    report = LintReport.of([*made("relative", VGA), *made("source", FULL_HD, 40)])
    report.add(Sample(texts=['"bbox_2d": [9, 9, 3, 3]'], sizes=[(9, 9)], origin="[odd]:1"))
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(report.table())
    lines = console.export_text().splitlines()
    text = " ".join(" ".join(lines).split())
    for words in (
        "(unnamed)",
        "relative",
        "0 to 1000",
        "source pixels",
        "[odd]:1: bbox_2d [9, 9, 3, 3]",
    ):
        assert words in text
    assert "beyond 1000, such as source.jsonl:" in text
    assert max(map(len, lines)) <= 110
