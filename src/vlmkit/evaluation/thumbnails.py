"""Small pictures of some questions, for the page on which answers are looked at."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmkit.checkpoint.run_folder import write_atomically
from vlmkit.data.frames.reader import open_auto
from vlmkit.data.record import Conversation, ImagePart, VideoPart
from vlmkit.errors import DataError
from vlmkit.evaluation.benchmark import Item
from vlmkit.evaluation.question import Question

FOLDER, INDEX = "pictures", "pictures.json"
MOST_QUESTIONS = 60
MOST_PICTURES = 6
"""Of a question; of more, some are shown that are spread evenly."""
SIDE_ALONE, SIDE_TOGETHER = 320, 160
"""Longer side in pixels, of a picture alone and of one among several."""


class Outcome(StrEnum):
    """What became of a question, the first that fits."""

    UNANSWERED = "unanswered"  # its picture could not be read, or the answer is missing
    UNREAD = "unread"  # the metric found no answer in the text
    CUT_OFF = "cut off"
    WRONG = "wrong"  # or not wholly right
    RIGHT = "right"

    @classmethod
    def of(cls, item: Item, primary: str, higher_is_better: bool) -> Outcome:
        """See the class."""
        found = item.scores[primary]
        if item.error is not None:
            return cls.UNANSWERED
        if found.failed:
            return cls.UNREAD
        best = 1.0 if higher_is_better else 0.0
        if found.score == best:
            return cls.RIGHT
        return cls.CUT_OFF if "length" in item.finish else cls.WRONG


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The pictures of a question.

    Attributes:
        files: names below the folder, in order.
        captions: of each.
        note: how many are left out, or why there are none.
    """

    files: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    note: str = ""


def drawn(outcomes: Sequence[Outcome], most: int, seed: int) -> list[int]:
    """Which questions to look at: half at random, half by turns from each kind of failure.

    Args:
        outcomes: of all questions.
        most: questions to choose.
        seed: of the choice.

    Returns:
        Places, in order.
    """
    shuffled = np.random.default_rng(seed).permutation(len(outcomes)).tolist()
    chosen = dict.fromkeys(shuffled[: most // 2])
    waiting = [
        [i for i in shuffled if outcomes[i] == kind and i not in chosen]
        for kind in Outcome
        if kind is not Outcome.RIGHT
    ]
    while len(chosen) < most and any(waiting):
        for queue in waiting:
            if queue and len(chosen) < most:
                chosen[queue.pop(0)] = None
    chosen |= dict.fromkeys([i for i in shuffled if i not in chosen][: most - len(chosen)])
    return sorted(chosen)


def save_pictures(questions: Iterable[Question], folder: Path) -> None:
    """Write pictures of questions, instead of those that are there, and `pictures.json`.

    Args:
        questions: to show.
        folder: of the result.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    index: dict[str, Any] = {}
    for question in questions:
        shown = _save(question, folder)
        if shown is not None:
            index[question.key] = asdict(shown)
    write_atomically(folder / INDEX, json.dumps(index, ensure_ascii=True).encode())


def load_pictures(folder: Path) -> Mapping[str, Shown]:
    """By key of the question; nothing where none were written."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    return {
        key: Shown(
            files=tuple(row["files"]), captions=tuple(row["captions"]), note=str(row["note"])
        )
        for key, row in found.items()
    }


def _save(question: Question, folder: Path) -> Shown | None:
    total = _number(question.conversation)
    if not total:
        return None
    stem = hashlib.sha256(question.key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    side = SIDE_ALONE if total == 1 else SIDE_TOGETHER
    files: list[str] = []
    captions: list[str] = []
    try:
        for caption, image in _opened(question.conversation):
            small = image.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            name = f"{FOLDER}/{stem}-{len(files)}.webp"
            small.save(folder / name, "WEBP", quality=70, method=4)
            files.append(name)
            captions.append(caption)
    except DataError as error:
        return Shown(files=tuple(files), captions=tuple(captions), note=f"cannot be shown: {error}")
    left_out = max(total - len(files), 0) if not _videos(question.conversation) else 0
    note = f"{left_out} more not shown" if left_out else ""
    return Shown(files=tuple(files), captions=tuple(captions), note=note)


def _number(conversation: Conversation) -> int:
    """Pictures; a video counts as several."""
    images = sum(isinstance(part, ImagePart) for part in conversation.parts)
    return images + MOST_PICTURES * len(_videos(conversation))


def _videos(conversation: Conversation) -> list[VideoPart]:
    return [part for part in conversation.parts if isinstance(part, VideoPart)]


def _opened(conversation: Conversation) -> Iterator[tuple[str, Image.Image]]:
    images = [part.image for part in conversation.parts if isinstance(part, ImagePart)]
    for i in _spread(len(images)):
        yield (f"picture {i + 1} of {len(images)}" if len(images) > 1 else "", images[i].open())
    for part in _videos(conversation):
        reader = open_auto(part.video)
        first, stop = 0, reader.num_frames
        if part.start_s is not None or part.end_s is not None:
            ends = (part.start_s or 0.0, reader.duration_s if part.end_s is None else part.end_s)
            first, stop = np.searchsorted(reader.pts_s, ends).tolist()
        indices = [first + i for i in _spread(stop - first)]
        for index, pixels in zip(indices, reader.get(indices), strict=True):
            yield f"{reader.pts_s[index]:.1f} s", Image.fromarray(pixels)


def _spread(count: int) -> list[int]:
    """At most so many places, evenly, with both ends."""
    found: list[int] = np.unique(
        np.linspace(0, count - 1, min(count, MOST_PICTURES)).round().astype(int)
    ).tolist()
    return found if count else []
