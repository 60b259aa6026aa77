"""Record -> example: everything about a sample that the model will see, still one sample.

In two steps. A *plan* knows all tokens, grids and times from headers alone; only then are pixels
decoded. What planning counts is by construction what decoding yields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlmkit.batch import Grid, Modality
from vlmkit.data.image import ImageTransform, PlannedImage
from vlmkit.data.patch_memory import joined
from vlmkit.data.record import Conversation, ImagePart, VideoPart
from vlmkit.data.template import ChatTemplate, TextPiece
from vlmkit.data.tokenizer import special_tokens_of
from vlmkit.data.video import PlannedVideo, VideoTransform
from vlmkit.sequence import Span, TextSpan, VisionSpan
from vlmkit.temporal.base import VISION_END, VISION_START, Clip, TemporalEncoding


class PlannedMedia(Protocol):
    """A picture or video before it is decoded."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def grid(self) -> Grid:
        """Temporal patches, rows and columns, in patches."""
        ...

    def patches(self, out: Tensor | None = None) -> Tensor:
        """Decode; (patches, patch_dim) float32, as many as the grid says, in `out` if it is given.

        Raises:
            MediaError: it cannot be decoded.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sample laid out, its media not yet decoded."""

    conversation: Conversation
    spans: tuple[Span, ...]
    media: tuple[PlannedMedia, ...]  # in the order of their visual spans
    media_share: float = 1.0  # of the pixel budgets

    @property
    def num_tokens(self) -> int:
        """Tokens of the sample, visual ones included."""
        return sum(span.num_tokens for span in self.spans)

    @property
    def num_patches(self) -> int:
        """Patches of all media."""
        return sum(time * rows * columns for time, rows, columns in self.grids)

    @property
    def num_scored(self) -> int:
        """Text tokens that the loss counts."""
        return sum(
            span.num_tokens for span in self.spans if isinstance(span, TextSpan) and span.scored
        )

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Of all media, in order."""
        return tuple(item.grid for item in self.media)

    @property
    def modality(self) -> Modality:
        """What the sample holds beside text."""
        parts = self.conversation.parts
        return Modality.of(
            has_image=any(isinstance(part, ImagePart) for part in parts),
            has_video=any(isinstance(part, VideoPart) for part in parts),
        )

    def load(self, out: Tensor | None = None) -> Example:
        """Decode the media.

        Args:
            out: takes their patches, (num_patches, patch_dim) float32.

        Raises:
            MediaError: one cannot be decoded; names it.
        """
        if out is None:
            decoded = [item.patches() for item in self.media]
            patches = joined(decoded) if decoded else torch.zeros(0, 0)
        else:
            patches, at = out, 0
            for item, grid in zip(self.media, self.grids, strict=True):
                count = math.prod(grid)
                item.patches(out[at : at + count])
                at += count
        return Example(
            spans=self.spans,
            patches=patches,
            grids=self.grids,
            source=self.conversation.source,
            modality=self.modality,
            meta=self.conversation.meta,
            plan=self,
        )


@dataclass(frozen=True, kw_only=True)
class Example:
    """A processed sample: spans in order, and the patches that belong to its vision spans."""

    spans: tuple[Span, ...]
    patches: Tensor  # (patches, patch_dim) float32, in the order of the spans
    grids: tuple[Grid, ...]
    source: str = ""
    modality: Modality | None = None  # None: nobody said
    meta: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None  # where it came from, for whoever wants to look

    @property
    def num_tokens(self) -> int:
        """Tokens of the sample, visual ones included."""
        return sum(span.num_tokens for span in self.spans)


class Processor:
    """Tokenises, cuts pictures into patches, samples videos, and lays it all out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        temporal: TemporalEncoding,
        image: ImageTransform,
        video: VideoTransform,
    ) -> None:
        """Keep the parts.

        Args:
            tokenizer: with the Qwen3 special tokens.
            template: writes turns.
            temporal: lays out videos.
            image: picture -> patches.
            video: file -> patches and times.
        """
        self.tokenizer = tokenizer
        self.template = template
        self.temporal = temporal
        self.image = image
        self.video = video
        self.special_tokens = special_tokens_of(tokenizer)

    def __call__(self, conversation: Conversation, for_generation: bool = False) -> Example:
        """Process one sample; see `plan` and `Plan.load`."""
        return self.plan(conversation, for_generation).load()

    def plan(
        self, conversation: Conversation, for_generation: bool = False, media_share: float = 1.0
    ) -> Plan:
        """Lay a sample out from the headers of its media.

        Args:
            conversation: the sample.
            for_generation: end with the opening of an assistant turn, as a prompt does.
            media_share: of the pixel budgets of pictures and videos, to make a sample shorter.

        Raises:
            MediaError: a picture or video cannot be read; names the source.
            RecordError: the template cannot write such a conversation.
        """
        layout: list[TextPiece | VisionSpan] = []
        media: list[PlannedMedia] = []
        for piece in self.template.render(conversation, for_generation):
            if isinstance(piece, TextPiece):
                layout.append(piece)
                continue
            run: list[str | VisionSpan]
            if isinstance(piece, ImagePart):
                picture = self.image.plan(piece.image, media_share)
                media.append(picture)
                run = self._image_run(picture)
            else:
                clip = self.video.plan(piece.video, piece.start_s, piece.end_s, media_share)
                media.append(clip)
                run = self._video_run(clip, conversation.key)
            layout += [TextPiece(part) if isinstance(part, str) else part for part in run]
        return Plan(
            conversation=conversation,
            spans=tuple(self._tokenize(layout)),
            media=tuple(media),
            media_share=media_share,
        )

    def _image_run(self, picture: PlannedImage) -> list[str | VisionSpan]:
        side = self.image.merge_size
        span = VisionSpan(
            placeholder_id=self.special_tokens.image_id,
            rows=picture.grid[1] // side,
            columns=picture.grid[2] // side,
        )
        return [VISION_START, span, VISION_END]

    def _video_run(self, video: PlannedVideo, key: int) -> list[str | VisionSpan]:
        side = self.video.merge_size
        clip = Clip(
            times_s=video.times_s,
            rows=video.grid[1] // side,
            columns=video.grid[2] // side,
            placeholder_id=self.special_tokens.video_id,
        )
        return self.temporal.layout(clip, key)

    def _tokenize(self, layout: Iterable[TextPiece | VisionSpan]) -> Iterator[Span]:
        """Text between visual runs is encoded as one string, as the published processor does.

        Which tokens are scored, and to which response they belong, follows from where in that string
        they begin, never from a search for marker tokens.
        """
        for is_text, run in groupby(layout, key=lambda part: isinstance(part, TextPiece)):
            if is_text:
                yield from self._tokenize_text([p for p in run if isinstance(p, TextPiece)])
            else:
                yield from (span for span in run if isinstance(span, VisionSpan))

    def _tokenize_text(self, pieces: list[TextPiece]) -> Iterator[TextSpan]:
        encoding = self.tokenizer.encode(
            "".join(piece.text for piece in pieces), add_special_tokens=False
        )
        ids = encoding.ids
        if not ids:
            return
        starts = np.fromiter(
            (start for start, _ in encoding.offsets), int, len(ids)
        )  # in characters
        ends_of_pieces = np.cumsum([len(piece.text) for piece in pieces])
        piece_of_token = np.searchsorted(ends_of_pieces, starts, side="right")
        scored = np.array([piece.scored for piece in pieces])[piece_of_token]
        response = np.array([piece.response for piece in pieces])[piece_of_token]
        changes = np.diff(scored) | (np.diff(response) != 0)
        bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(ids)]
        for first, stop in pairwise(bounds):
            yield TextSpan(
                token_ids=tuple(ids[first:stop]),
                scored=bool(scored[first]),
                response=int(response[first]),
            )
