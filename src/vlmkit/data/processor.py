"""Record -> example: everything about a sample that the model will see, still one sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlmkit.batch import Grid
from vlmkit.data.image import ImageTransform
from vlmkit.data.record import Conversation, ImagePart
from vlmkit.data.template import ChatTemplate, TextPiece
from vlmkit.data.tokenizer import special_tokens_of
from vlmkit.data.video import VideoTransform
from vlmkit.sequence import Span, TextSpan, VisionSpan
from vlmkit.temporal.base import VISION_END, VISION_START, Clip, TemporalEncoding


@dataclass(frozen=True, kw_only=True)
class Example:
    """A processed sample: spans in order, and the patches that belong to its vision spans."""

    spans: tuple[Span, ...]
    patches: Tensor  # (patches, patch_dim) float32, in the order of the spans
    grids: tuple[Grid, ...]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

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
        """Process one sample.

        Args:
            conversation: the sample.
            for_generation: end with the opening of an assistant turn, as a prompt does.

        Raises:
            MediaError: a picture or video cannot be read; names the source.
        """
        layout: list[TextPiece | VisionSpan] = []
        patches: list[Tensor] = []
        grids: list[Grid] = []
        for piece in self.template.render(conversation, for_generation):
            if isinstance(piece, TextPiece):
                layout.append(piece)
                continue
            if isinstance(piece, ImagePart):
                pixels, grid = self.image(piece.image.open())
                run = self._image_run(grid)
            else:
                clip = self.video(piece.path, piece.start_s, piece.end_s)
                pixels, grid = clip.patches, clip.grid
                run = self._video_run(grid, clip.times_s, conversation.key)
            layout += [TextPiece(part) if isinstance(part, str) else part for part in run]
            patches.append(pixels)
            grids.append(grid)
        return Example(
            spans=tuple(self._tokenize(layout)),
            patches=torch.cat(patches) if patches else torch.zeros(0, 0),
            grids=tuple(grids),
            source=conversation.source,
            meta=conversation.meta,
        )

    def _image_run(self, grid: Grid) -> list[str | VisionSpan]:
        side = self.image.merge_size
        span = VisionSpan(
            placeholder_id=self.special_tokens.image_id,
            rows=grid[1] // side,
            columns=grid[2] // side,
        )
        return [VISION_START, span, VISION_END]

    def _video_run(
        self, grid: Grid, times_s: tuple[float, ...], key: int
    ) -> list[str | VisionSpan]:
        side = self.video.merge_size
        clip = Clip(
            times_s=times_s,
            rows=grid[1] // side,
            columns=grid[2] // side,
            placeholder_id=self.special_tokens.video_id,
        )
        return self.temporal.layout(clip, key)

    def _tokenize(self, layout: Iterable[TextPiece | VisionSpan]) -> Iterable[Span]:
        """Text between visual runs is encoded as one string, as the published processor does.

        Which tokens are scored follows from where in that string they begin, never from a search for
        marker tokens.
        """
        for is_text, run in groupby(layout, key=lambda part: isinstance(part, TextPiece)):
            if not is_text:
                yield from run  # type: ignore[misc]
                continue
            pieces: list[TextPiece] = list(run)  # type: ignore[arg-type]
            scored_chars = [piece.scored for piece in pieces for _ in piece.text]
            encoding = self.tokenizer.encode(
                "".join(piece.text for piece in pieces), add_special_tokens=False
            )
            tokens = zip(encoding.ids, encoding.offsets, strict=True)
            for scored, group in groupby(tokens, key=lambda token: scored_chars[token[1][0]]):
                yield TextSpan(token_ids=tuple(token_id for token_id, _ in group), scored=scored)
