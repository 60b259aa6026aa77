"""A small batch that holds one of everything: boxes, points, a video, long text, hostile text.

python -m tests.inspection.gallery page.html    # the page of docs/images/inspect.png
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

from vlmkit.assets import asset_path
from vlmkit.build import build, compose_config
from vlmkit.data.frames.reader import open_auto
from vlmkit.data.geometry.shapes import Box, Grounding, Point, SourcePixels, TimeSpan
from vlmkit.data.media import ImageArray, VideoFile
from vlmkit.data.order.samples import Skipped
from vlmkit.data.order.work import TransformerWork
from vlmkit.data.processor import Processor
from vlmkit.data.quickstart.emoji import EmojiSet
from vlmkit.data.record import (
    Conversation,
    GroundingPart,
    ImagePart,
    Message,
    Part,
    TextPart,
    VideoPart,
)
from vlmkit.data.rows import Rows
from vlmkit.errors import Reason
from vlmkit.inspection.page import page
from vlmkit.inspection.tokens import Vocabulary
from vlmkit.inspection.view import MicroBatch, view

FILM = asset_path("video", "big_buck_bunny.mp4")
HOSTILE = (
    "</script><script>document.title='hacked'</script> <img src=x onerror=alert(1)> & \"quotes\" "
    "{{ 7*7 }} ${x} \x1b[31mred\x07\t|\r\n שלום עולם مرحبا \u202egnp.txe e\u0301 猫👩\u200d🚀 "
    "]]> <!-- <|endoftext|>"
)
RABBIT = (0.07, 0.18, 0.465, 0.81)  # in the frame of `still`, of its width and height
NOSE = (0.39, 0.43)


def still(time_s: float = 0.85, zoom: int = 2) -> ImageArray:
    """A frame of the film."""
    reader = open_auto(VideoFile(FILM))
    pixels = reader.get([int(np.abs(reader.pts_s - time_s).argmin())])[0]
    return ImageArray(pixels.repeat(zoom, 0).repeat(zoom, 1), name="film, frame at 0.85 s")


def turns(*parts: str | Part | tuple[Part, ...], **fields: object) -> Conversation:
    """Messages of user and assistant in turn."""
    messages = []
    for i, part in enumerate(parts):
        several = part if isinstance(part, tuple) else (part,)
        kept = tuple(TextPart(p) if isinstance(p, str) else p for p in several)
        messages.append(Message(role="assistant" if i % 2 else "user", parts=kept))
    return Conversation(messages=tuple(messages), **fields)  # type: ignore[arg-type]


def boxes() -> Conversation:
    picture = still()
    height, width = picture.size()
    space = SourcePixels(width, height)
    x1, y1, x2, y2 = RABBIT
    found = (
        Grounding(Box(x1 * width, y1 * height, x2 * width, y2 * height, space), "rabbit"),
        Grounding(Point(NOSE[0] * width, NOSE[1] * height, space), "nose"),
    )
    return turns(
        (
            ImagePart(picture),
            TextPart("Where is the rabbit, and where is its nose? Answer in JSON."),
        ),
        GroundingPart(found),
        "What is it doing?",
        "It comes out of its burrow under a tree and pushes a boulder aside.",
        source="boxes",
        origin="boxes.jsonl:17",
    )


def film() -> Conversation:
    return turns(
        (VideoPart(VideoFile(FILM), 1.0, 4.0), TextPart("When does the rabbit yawn? What before?")),
        (
            GroundingPart((Grounding(TimeSpan(2.0, 3.0), "yawns"),)),
            TextPart("\nBefore that it stands up and stretches."),
        ),
        source="film",
        origin="clips.parquet:2",
    )


def chat() -> Conversation:
    return turns(
        "How do I count words per line in Python?",
        "Split each line:\n\n```python\nfor line in open(path):\n\tprint(len(line.split()))\n```\n",
        "And in Chinese text?",
        "Words are not set apart there: 我喜欢猫 🐱 needs a segmenter. Count characters, or tokens.",
        source="chat",
        origin="chat.jsonl:4021",
    )


def two_pictures() -> Conversation:
    emoji = EmojiSet(artists=["noto"])
    fox, owl = (next(c for c in emoji.concepts if c.label_en == name) for name in ("fox", "owl"))
    return turns(
        (
            ImagePart(ImageArray(emoji.picture(fox, "noto"))),
            ImagePart(ImageArray(emoji.picture(owl, "noto"))),
            TextPart("Box the eyes of the second animal."),
        ),
        '[{"bbox_2d": [250, 190, 480, 440], "label": "left eye"}, '
        '{"bbox_2d": [520, 190, 750, 440], "label": "right eye"}]',
        source="emoji",
        origin="emoji.tar:000031",
    )


def hostile() -> Conversation:
    return turns(HOSTILE, HOSTILE, source="<b>chat</b>", origin="</style>.jsonl:1")


@lru_cache(maxsize=2)
def processor(*overrides: str) -> Processor:
    """Of the quickstart, with pictures of up to 320 visual tokens."""
    built: Processor = build(
        compose_config(
            "processor.image.max_pixels=327680",
            "processor.video.fps=2",
            "processor.video.max_pixels=600000",
            *overrides,
        ).processor
    )
    return built


def skipped() -> Skipped:
    return Skipped(
        index=5,
        source="boxes",
        origin="boxes.jsonl:5",
        code=Reason.MISSING_FILE,
        message="image photos/0005.jpg: file not found <i>",
    )


def micro_batch(
    rows: list[list[Conversation]], uses: Processor | None = None, fixed_length: bool = False
) -> MicroBatch:
    """What the page of one micro-batch of these rows shows."""
    uses = uses or processor()
    work: TransformerWork = build(compose_config().work)
    plans = [[uses.plan(conversation) for conversation in row] for row in rows]
    shape = Rows(
        row_tokens=1024, row_patches=2048, rows_per_micro_batch=len(rows), fixed_length=fixed_length
    )
    examples = [[plan.load() for plan in row] for row in plans]
    names = sorted({example.source for row in examples for example in row})
    step = shape.step_batch(100, examples, [skipped()], uses, names)
    flat = [example for row in examples for example in row]
    shown = view(
        step.micro_batches[0],
        flat,
        uses,
        limits=shape.limits,
        work=work,
        step=100,
        skipped=step.skipped,
        facts={"from": "a gallery of everything", "template": type(uses.template).__name__},
    )
    mean = sum(row.work for row in shown.rows) / len(shown.rows)
    return MicroBatch(**{**vars(shown), "mean_work": mean})


def everything() -> MicroBatch:
    return micro_batch([[boxes(), chat(), two_pictures()], [film(), hostile()]])


if __name__ == "__main__":
    friendly = micro_batch([[boxes(), film(), chat(), two_pictures()]], fixed_length=True)
    text = page(friendly, Vocabulary(processor().tokenizer))
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
