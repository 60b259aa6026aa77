"""A page shows what the batch holds, and says so when that is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.inspection import gallery
from tests.samples import image_example, text_example, video_example
from vlmkit.build import build, compose_config
from vlmkit.data.collate import collate
from vlmkit.data.geometry.shapes import (
    Box,
    Crop,
    Grounding,
    Relative1000,
    ResizedPixels,
    SourcePixels,
)
from vlmkit.data.geometry.spaces import Picture
from vlmkit.data.media import ImageArray
from vlmkit.data.order.work import Limits
from vlmkit.data.record import GroundingPart, ImagePart, TextPart
from vlmkit.inspection.media import seconds_of, shapes_by_image, written_time
from vlmkit.inspection.tokens import Vocabulary
from vlmkit.inspection.view import Kind, MicroBatch, failures, view


@pytest.fixture(scope="module")
def batch() -> MicroBatch:
    return gallery.everything()


def sample_of(batch: MicroBatch, source: str):
    return next((r, s) for r in batch.rows for s in r.samples if s.source == source)


def test_kinds_count_what_the_loss_counts(batch):
    scored = sum(int((row.labels >= 0).sum()) for row in batch.rows)
    assert batch.count(Kind.SUPERVISED) == scored
    for row in batch.rows:
        visual = sum(run.num_tokens for s in row.samples for m in s.media for run in m.runs)
        assert row.count(Kind.VISUAL) == visual
        assert row.num_tokens == sum(sample.num_tokens for sample in row.samples)
    assert sum(tokens for _, tokens in batch.sources.values()) == sum(
        row.num_tokens for row in batch.rows
    )


def test_what_is_coloured_is_what_the_assistant_says(batch):
    row, sample = sample_of(batch, "chat")
    vocabulary = Vocabulary(gallery.processor().tokenizer)
    places = np.arange(sample.start, sample.stop)
    mine = row.ids[places[row.kinds[places] == Kind.SUPERVISED]].tolist()
    answers = [m.text for m in gallery.chat().messages if m.role == "assistant"]
    assert vocabulary.text(mine) == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_nothing_is_wrong_with_the_gallery(batch):
    assert batch.failures == ()


def test_pictures_come_from_the_batch(batch):
    """Not from the file: what is shown is what was resized, normalised and cut up."""
    _, sample = sample_of(batch, "emoji")
    for medium, part in zip(sample.media, gallery.two_pictures().parts, strict=False):
        np.testing.assert_array_equal(medium.frames()[0], part.image.pixels)
    _, sample = sample_of(batch, "film")
    (film,) = sample.media
    assert film.frames().shape == (film.grid[0] * 2, *film.size, 3)
    assert film.frames()[0].mean() != pytest.approx(film.frames()[4].mean(), abs=0.05)


@pytest.mark.parametrize("space", ["source", "thousand", "crop"])
def test_a_box_surrounds_what_was_painted(space):
    """Through resizing, patches and back: red inside, none outside."""
    pixels = np.full((150, 340, 3), 255, dtype=np.uint8)
    pixels[30:90, 68:204] = (255, 0, 0)
    sides = (68, 30, 204, 90)
    source = SourcePixels(340, 150)
    shape = Box(*sides, source)
    if space == "thousand":
        shape = shape.to(Relative1000())
    elif space == "crop":
        shape = shape.to(ResizedPixels(100, 100, on=Crop(Box(34, 15, 306, 135, source))))
    conversation = gallery.turns(
        (ImagePart(ImageArray(pixels)), TextPart("Where?")),
        GroundingPart((Grounding(shape, "red"),)),
        source="painted",
    )
    ((sample,),) = [row.samples for row in gallery.micro_batch([[conversation]]).rows]
    (medium,) = sample.media
    (drawn,) = medium.shapes
    assert medium.size != (150, 340)  # it was resized
    x1, y1, x2, y2 = (round(n) for n in drawn.coordinates)
    frame = medium.frames()[0].astype(int)
    is_red = (frame[..., 0] > 200) & (frame[..., 1:].max(-1) < 60)
    assert is_red[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].all()
    outside = is_red.copy()
    outside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
    assert not outside.any()


def test_boxes_in_text_belong_to_the_picture_before_it(batch):
    _, sample = sample_of(batch, "emoji")
    fox, owl = sample.media
    assert fox.shapes == ()
    assert [shape.label for shape in owl.shapes] == ["left eye", "right eye"]
    assert all(shape.from_text for shape in owl.shapes)
    assert owl.shapes[0].coordinates == pytest.approx((16, 12.16, 30.72, 28.16))


def test_what_cannot_be_drawn_is_said():
    broken = gallery.turns("Where?", '[{"bbox_2d": [9, 9, 3, 3]}]')
    far = Grounding(Box(0, 0, 1, 1, Relative1000(on=Picture(3))), "far")
    lost = gallery.turns("Where?", GroundingPart((far,), image=3))
    drawn, notes = shapes_by_image(broken, [(64, 64)])
    assert drawn == [[]]
    assert "cannot be read" in notes[0]
    drawn, notes = shapes_by_image(lost, [(64, 64)])
    assert drawn == [[]]
    assert "image 4, which is not there" in notes[0]
    _, sample = sample_of(gallery.everything(), "film")
    assert sample.notes == ("00:02.00 to 00:03.00: yawns",)


@pytest.mark.parametrize("temporal", ["text_seconds", "text_hms", "t_rope", "index"])
def test_times_of_a_video(temporal):
    uses = gallery.processor(f"temporal={temporal}")
    shown = gallery.micro_batch([[gallery.film()]], uses)
    (film,) = shown.rows[0].samples[0].media
    assert len(film.patch_starts) == film.grid[0]
    assert sum(run.num_patches for run in film.runs) == film.grid[0]
    kinds = shown.rows[0].kinds
    tokens = film.num_rows * film.num_columns
    for start in film.patch_starts:
        assert (kinds[start : start + tokens] == Kind.VISUAL).all()
    for patch in range(film.grid[0]):
        (first, early), (last, late) = film.sources_of(patch)
        assert first < last
        assert early < late
    if temporal.startswith("text"):
        means = [np.mean([t for _, t in film.sources_of(p)]) for p in range(film.grid[0])]
        written = [seconds_of(run.written) for run in film.runs]
        np.testing.assert_allclose(written, means, atol=0.051)  # measured 0.04; tenths are written
    else:
        assert [run.written for run in film.runs] == [None]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("user\n<1.5 seconds>", 1.5),
        ("<00:01:23.5>", 83.5),
        ("<12.0 seconds>", 12.0),
        ("a < b", None),
        ("<|im_start|>", None),
        ("<somewhere>", None),
    ],
)
def test_written_times_are_read(text, seconds):
    assert seconds_of(written_time(text)) == seconds


def test_examples_without_a_plan():
    """Batches made by hand can be looked at, too."""
    processor = build(compose_config("model=qwen3vl_tiny").processor)
    rows = [[text_example(0), image_example(1)], [video_example(2)]]
    batch = collate(rows, pad_id=processor.special_tokens.pad_id, merge_size=2)
    flat = [example for row in rows for example in row]
    shown = view(batch, flat, processor, limits=Limits(64))
    assert [[m.kind for s in row.samples for m in s.media] for row in shown.rows] == [
        ["image"],
        ["video"],
    ]
    assert shown.failures == ()
    assert shown.rows[0].work == 0


@pytest.mark.parametrize("what", ["label", "border", "segment", "position"])
def test_a_wrong_batch_is_called_wrong(batch, what):
    row = batch.rows[0]
    labels, positions, segments = row.labels.copy(), row.positions.copy(), row.segments
    second = row.samples[1]
    if what == "label":
        at = int(np.flatnonzero(labels >= 0)[3])
        labels[at] += 1
    elif what == "border":
        labels[second.start - 1] = row.ids[second.start]
    elif what == "segment":
        segments = ((0, second.stop), *segments[2:])
    else:
        positions[0, second.start :] += 7
    found = list(failures([replace(row, labels=labels, positions=positions, segments=segments)]))
    assert found
    assert all(text.startswith("row 0, sample ") for text in found)
