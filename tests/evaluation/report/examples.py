"""Results with everything that a page can show, some of it hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.evaluation.fakes import Doublings, FakeAnswerer, doublings
from vlmkit.data.media import FrameSequence, ImageArray, ImageFile
from vlmkit.data.record import Conversation, ImagePart, Message, Part, TextPart, VideoPart
from vlmkit.evaluation.benchmark import Benchmark, Published
from vlmkit.evaluation.evaluator import evaluate
from vlmkit.evaluation.question import Question

HOSTILE = (
    '</script><img src=x onerror="document.title=`taken`"><script>document.title="taken"</script>'
    "<svg onload=document.title='taken'> {{ 7 * 7 }} &amp; \u2028 \ud800"
)


def picture(shade: int) -> ImageArray:
    return ImageArray(np.full((400, 300, 3), shade, dtype=np.uint8))


class Seen(Doublings):
    """Pictures of each kind: one, many, a video, a file that is missing, none."""

    def __getitem__(self, index: int) -> Question:
        plain = super().__getitem__(index)
        shown: list[Part] = []
        if index % 5 == 0:
            shown = [ImagePart(picture(40 * index % 255))]
        elif index % 5 == 1:
            shown = [ImagePart(picture(i)) for i in range(9)]
        elif index % 5 == 2:
            frames = tuple(picture(i) for i in range(8))
            shown = [VideoPart(FrameSequence.at_fps(frames, 2.0, "eight frames"))]
        elif index % 5 == 3:
            shown = [ImagePart(ImageFile(Path("nowhere.png")))]
        turn = Message(role="user", parts=(*shown, TextPart(f"{HOSTILE} 2 * {index}?")))
        return Question(
            key=f"{plain.key}<b>",
            conversation=Conversation(messages=(turn,)),
            target=plain.target,
            categories={"<i>kind": "<u>odd" if index % 2 else "even"},
        )


def hostile_benchmark(count: int = 10) -> Benchmark:
    return doublings(
        questions=Seen(count),
        chance=0.1,
        about="what is <b>twice</b> a number",
        published=Published(
            source="a paper", scores={"instruct": {"2b": 53.4, "8b": 69.6}, "thinking": {"8b": 75}}
        ),
    )


def answers(count: int = 10, right: int = 4) -> dict[str, str | None]:
    found: dict[str, str | None] = {f"q{i}<b>": str(2 * i) for i in range(right)}
    found |= {f"q{i}<b>": HOSTILE for i in range(right, count)}
    return found | {f"q{count - 1}<b>": None, f"q{count - 2}<b>": "<think> no end"}


def evaluated(folder: Path, right: int = 4, name: str = "a model") -> Path:
    """The folder of one result."""
    answerer = FakeAnswerer(answers(right=right))
    answerer.name = name  # type: ignore[misc]
    answerer.checkpoint = name  # type: ignore[misc]
    return folder / evaluate(hostile_benchmark(), answerer, folder).spec.name
