"""A data set as people have it: JPEG photos of many sizes, captions, dialogues, text, a few videos.

Photos are crops of a film and of drawings, enlarged, with the grain of a sensor, so that they take as many
bytes per pixel as photos do. Everything follows from the seed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmkit.assets import asset_path
from vlmkit.data.frames.auto import open_auto
from vlmkit.data.media import ImageFile, VideoFile
from vlmkit.data.quickstart.emoji import EmojiSet
from vlmkit.data.record import Conversation, ImagePart, Message, Part, TextPart, VideoPart
from vlmkit.data.sources.jsonl import JsonlTable

ASPECT_RATIOS = (1.0, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16, 2.5)
ASPECT_SHARES = (0.15, 0.25, 0.2, 0.1, 0.15, 0.08, 0.05, 0.02)
KINDS = ("caption", "dialogue", "pair", "text", "video")
KIND_SHARES = (0.58, 0.2, 0.05, 0.15, 0.02)
CLIP_FRAMES_PER_S = 25


class PhotoRows:
    """Rows that `write_data` wrote, as conversations; reads few rows and no picture."""

    def __init__(self, file: str | Path) -> None:
        self.folder = Path(file).parent
        self.table = JsonlTable(file)
        self.fingerprint = self.table.fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Conversation:
        """See `vlmkit.data.order.mixture.Source`."""
        row = self.table[index]
        messages = tuple(
            Message(role=turn["role"], parts=tuple(self._part(part) for part in turn["content"]))
            for turn in row["messages"]
        )
        return Conversation(messages=messages, key=index, origin=self.table.origin(index))

    def _part(self, part: dict[str, Any]) -> Part:
        if "image" in part:
            return ImagePart(ImageFile(self.folder / part["image"]))
        if "video" in part:
            return VideoPart(VideoFile(self.folder / part["video"]), part["start"], part["end"])
        return TextPart(part["text"])


def write_data(
    folder: Path,
    num_samples: int,
    seed: int = 0,
    kinds: tuple[float, ...] = KIND_SHARES,
    longest_side: int = 1600,
) -> Path:
    """Write photos, videos and rows.

    Args:
        folder: to write to.
        num_samples: rows.
        seed: of everything.
        kinds: shares of `KINDS`.
        longest_side: of a photo at most, in pixels; at least 200.

    Returns:
        The file of rows.
    """
    rng = np.random.default_rng(seed)
    for name in ("images", "videos"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    clip = asset_path("video", "big_buck_bunny.mp4")
    shutil.copy(clip, folder / "videos" / "clip.mp4")
    camera = _Camera(rng, longest_side)
    writer = _Writer(rng)
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for i in range(num_samples):
            kind = str(rng.choice(KINDS, p=kinds))
            media: list[dict[str, Any]] = []
            if kind == "video":
                start = float(rng.uniform(0, 2))
                end = start + float(rng.uniform(1.5, 3))
                media = [{"video": "videos/clip.mp4", "start": start, "end": end}]
            elif kind != "text":
                for k in range(2 if kind == "pair" else 1):
                    name = f"images/{i:07d}-{k}.jpg"
                    camera.take(folder / name)
                    media.append({"image": name})
            file.write(json.dumps({"messages": writer.turns(kind, media)}) + "\n")
    return rows


class _Camera:
    """Takes photos of a film and of drawings."""

    def __init__(self, rng: np.random.Generator, longest_side: int) -> None:
        self.rng, self.longest_side = rng, longest_side
        reader = open_auto(VideoFile(asset_path("video", "big_buck_bunny.mp4")))
        self.scenes = list(reader.get(range(0, reader.num_frames, 4)))
        emoji = EmojiSet()
        self.scenes += [emoji.picture(concept, "noto") for concept in emoji.concepts[::40]]
        grain = rng.normal(0, 1, (longest_side, longest_side, 1))
        self.grain = (grain + rng.normal(0, 0.4, (longest_side, longest_side, 3))).astype(
            np.float32
        )

    def take(self, target: Path) -> None:
        longest = float(np.exp(self.rng.uniform(np.log(200), np.log(self.longest_side))))
        ratio = float(self.rng.choice(ASPECT_RATIOS, p=ASPECT_SHARES))
        width, height = (longest, longest / ratio) if ratio >= 1 else (longest * ratio, longest)
        size = max(round(width), 32), max(round(height), 32)
        scene = Image.fromarray(self.scenes[self.rng.integers(len(self.scenes))])
        left, top = self.rng.uniform(0, 0.4, 2) * scene.size
        right, bottom = self.rng.uniform(0.6, 1, 2) * scene.size
        photo = scene.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        grain = self.grain[: size[1], : size[0]] * self.rng.uniform(2, 6)
        pixels: NDArray[np.float32] = np.asarray(photo, dtype=np.float32) + grain
        quality = int(self.rng.integers(80, 94))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, quality=quality)


class _Writer:
    """Writes text whose lengths spread as those of captions and dialogues do."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        root = Path(__file__).parents[1]
        text = "".join((root / name).read_text() for name in ("CONTRIBUTING.md", "docs/design.md"))
        concepts = EmojiSet().concepts
        things = [word for concept in concepts for word in (concept.label_en, *concept.tags_en)]
        self.words = text.split() + things

    def turns(self, kind: str, media: list[dict[str, Any]]) -> list[dict[str, Any]]:
        turns: list[dict[str, Any]] = []
        rounds = int(self.rng.integers(2, 7)) if kind == "dialogue" else 1
        for i in range(rounds):
            question = [*(media if not i else ()), {"text": self._text(10, 0.5)}]
            median = {"text": 220, "dialogue": 30}.get(kind, 45)
            answer = [{"text": self._text(median, 0.8)}]
            turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        return turns

    def _text(self, median: int, spread: float) -> str:
        """Words in the order in which someone wrote them, as many as a log-normal says."""
        count = int(np.clip(self.rng.lognormal(np.log(median), spread), 2, 2000))
        first = int(self.rng.integers(len(self.words)))
        return " ".join((self.words * 2)[first : first + count])
