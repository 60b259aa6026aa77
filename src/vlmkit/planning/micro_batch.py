"""What a micro-batch holds, in sizes: from headers of the real data, or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vlmkit.batch import VLMBatch
from vlmkit.data.order.mixture import Mixture
from vlmkit.data.rows import Rows
from vlmkit.data.sizes.measured import Measured
from vlmkit.errors import ConfigError
from vlmkit.training.meters.work import Work, sample_lengths


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that the model sees at a time.

    Attributes:
        tokens: of all rows, padding included.
        lengths: of the samples.
        frames: patches of each picture and each temporal patch of a video.
        scored: tokens whose next token is scored.
        visual_tokens: of all frames.
        source: where the numbers come from.
    """

    tokens: int
    lengths: tuple[int, ...]
    frames: tuple[int, ...]
    scored: int
    visual_tokens: int
    source: str

    @classmethod
    def of(cls, batch: VLMBatch) -> MicroBatch:
        """That of a batch which is there."""
        vision = batch.vision
        return cls(
            tokens=batch.input_ids.numel(),
            lengths=tuple(sample_lengths(batch)),
            frames=vision.segments.lengths if vision is not None else (),
            scored=len(batch.scored_index) if batch.scored_index is not None else 0,
            visual_tokens=vision.num_visual_tokens if vision is not None else 0,
            source="the batch",
        )

    @property
    def patches(self) -> int:
        """Of all frames."""
        return sum(self.frames)

    @property
    def work(self) -> Work:
        """What its FLOPs are linear in."""
        return Work(
            tokens=sum(self.lengths),
            causal_pairs=sum(n * n for n in self.lengths) / 2,
            scored=self.scored,
            patches=self.patches,
            frames=len(self.frames),
            frame_pairs=sum(n * n for n in self.frames),
            visual_tokens=self.visual_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class AssumedMix:
    """A stated mix, where no data are at hand.

    Attributes:
        sample_tokens: length of a sample; None: one sample fills a row.
        visual_share: share of tokens that are visual.
        scored_share: share of tokens whose next token is scored.
        frame_tokens: visual tokens of a picture or a temporal patch of a video.
    """

    sample_tokens: int | None = 1024
    visual_share: float = 0.5
    scored_share: float = 0.5
    frame_tokens: int = 256

    def __post_init__(self) -> None:
        """Refuse what is no share.

        Raises:
            ConfigError: names the field.
        """
        for name in ("visual_share", "scored_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"planning.mix.{name} is {getattr(self, name)}; 0 to 1")

    def micro_batch(self, rows: Rows, merge_size: int) -> MicroBatch:
        """Full rows."""
        total = rows.row_tokens * rows.rows_per_micro_batch
        length = min(self.sample_tokens or rows.row_tokens, rows.row_tokens)
        num_frames = round(total * self.visual_share / self.frame_tokens)
        if total * self.visual_share and not num_frames:
            num_frames = 1
        area = merge_size**2
        visual = min(num_frames * self.frame_tokens, int(total * self.visual_share) or 1)
        each = visual // num_frames if num_frames else 0
        return MicroBatch(
            tokens=total,
            lengths=(length,) * (total // length) + ((total % length,) if total % length else ()),
            frames=(each * area,) * num_frames,
            scored=int(total * self.scored_share),
            visual_tokens=each * num_frames,
            source=(
                f"assumed: {self.visual_share:.0%} of the tokens visual, {self.scored_share:.0%} scored, "
                f"samples of {length:,} tokens, {self.frame_tokens} tokens a picture"
            ),
        )


def measured_micro_batch(
    measured: Mapping[str, Measured], mixture: Mixture, rows: Rows, seed: int = 0
) -> MicroBatch:
    """A micro-batch drawn from measured samples in the shares of a mixture, rows as full as they get.

    Raises:
        ConfigError: no sample can be used.
    """
    usable = {
        name: part.samples[part.samples.code == 0]
        for name, part in measured.items()
        if (part.samples.code == 0).any()
    }
    if not usable:
        raise ConfigError(
            "no sample of the data can be used; planning.samples=0 plans with planning.mix"
        )
    shares = dict(zip(mixture.names, mixture.shares.tolist(), strict=True))
    weights = np.array([shares[name] for name in usable])
    rng = np.random.default_rng(seed)
    drawn = []
    room, names = rows.row_tokens * rows.rows_per_micro_batch, list(usable)
    misses = 0
    while room > 0 and misses < 32:
        columns = usable[names[rng.choice(len(names), p=weights / weights.sum())]]
        i = int(rng.integers(len(columns)))
        if int(columns.tokens[i]) > room:
            misses += 1
            continue
        room -= int(columns.tokens[i])
        drawn.append((columns, i))
    frames: list[int] = []
    for columns, i in drawn:
        if patches := int(columns.patches[i]):
            # frames of one sample are taken to be alike: patches**2 over patches is the length of one
            each = max(round(int(columns.patch_pairs[i]) / patches), 1)
            number = max(round(patches / each), 1)
            frames += [patches // number] * number
    lengths = tuple(int(columns.tokens[i]) for columns, i in drawn)
    return MicroBatch(
        tokens=rows.row_tokens * rows.rows_per_micro_batch if rows.fixed_length else sum(lengths),
        lengths=lengths,
        frames=tuple(frames),
        scored=sum(int(columns.scored[i]) for columns, i in drawn),
        visual_tokens=sum(int(columns.visual_tokens[i]) for columns, i in drawn),
        source=f"headers of {sum(len(c) for c in usable.values()):,} samples",
    )


def scaled(work: Work, by: float) -> Work:
    """So many times as much."""
    return replace(work, **{name: value * by for name, value in vars(work).items()})
