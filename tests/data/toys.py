"""Sources and sizes for tests of the data path."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vlmkit.data.media import ImageArray
from vlmkit.data.order.work import Sizes, TransformerWork
from vlmkit.data.record import Conversation, ImagePart, Message, Part, TextPart
from vlmkit.errors import DataError, RecordError

WORK = TransformerWork(  # of Qwen3-VL-8B
    hidden_dim=4096,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    feed_forward_dim=12288,
    vision_dim=1152,
    vision_depth=27,
)


@dataclass(frozen=True)
class Numbered:
    """Questions of growing length, every third with a picture; some records may be unusable."""

    size: int
    broken: frozenset[int] = frozenset()
    error: type[Exception] = RecordError
    opened: list[int] = field(default_factory=list)  # which were asked for, in this process

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        self.opened.append(index)
        if index in self.broken:
            raise self.error(f"record {index} is broken")
        media: tuple[Part, ...] = ()
        if index % 3 == 0:
            height, width = 32 * (1 + index % 5), 32 * (1 + index % 4)
            media = (ImagePart(ImageArray(np.full((height, width, 3), index % 251, np.uint8))),)
        words = " ".join(str(index) for _ in range(1 + index % 17))
        return Conversation(
            messages=(
                Message(role="user", parts=(*media, TextPart(f"count {words}"))),
                Message(role="assistant", parts=(TextPart(str(index)),)),
            ),
            key=index,
            origin=f"numbers:{index}",
            meta={"number": index},
        )


class Unreadable:
    """A picture whose header is fine and whose pixels are not."""

    name = "unreadable.png"

    def __init__(self, error: type[Exception] = DataError) -> None:
        self.error = error

    def size(self) -> tuple[int, int]:
        return 64, 64

    def open(self):
        raise self.error("unreadable.png: cannot be decoded")


def sizes_of(tokens: list[int], patches: list[int] | None = None) -> Sizes:
    """Sizes of samples whose pictures are one frame each."""
    counts = np.array(tokens, dtype=np.int64)
    pixels = np.zeros_like(counts) if patches is None else np.array(patches, dtype=np.int64)
    return Sizes(tokens=counts, scored=counts // 2, patches=pixels, patch_pairs=pixels**2)


def realistic(count: int, seed: int = 0, most_tokens: int = 8192) -> Sizes:
    """Sizes as in a mix of text, one picture, several pictures, dense pictures and clips.

    Lengths are log-normal; a quarter is text, 45 % one picture of about 400 visual tokens, 15 % two to
    four of them, 10 % dense pages of about 1,600, and 5 % clips.
    """
    rng = np.random.default_rng(seed)
    kind = rng.choice(5, count, p=[0.25, 0.45, 0.15, 0.10, 0.05])
    tokens = np.clip(rng.lognormal(5.2, 0.9, count), 10, 6000).astype(np.int64)
    tokens[kind == 0] = np.clip(rng.lognormal(6.2, 1, (kind == 0).sum()), 20, most_tokens)
    patches, pairs = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for i in np.flatnonzero(kind > 0):
        if kind[i] == 4:
            frames, visual = int(rng.integers(2, 40)), [int(rng.integers(32, 160))]
            tokens[i] += 9 * frames  # timestamps
        else:
            frames, number = 1, int(rng.integers(2, 5)) if kind[i] == 2 else 1
            mean = 7.4 if kind[i] == 3 else 6.0
            visual = np.clip(rng.lognormal(mean, 0.6, number), 64, 2048).astype(int).tolist()
        for each in visual:
            tokens[i] += frames * each
            patches[i] += frames * 4 * each
            pairs[i] += frames * (4 * each) ** 2
    fits = tokens <= most_tokens
    return Sizes(tokens=tokens, scored=tokens // 3, patches=patches, patch_pairs=pairs)[fits]
