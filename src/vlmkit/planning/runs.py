"""How each kind of part is called on tensors without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.batch import Segments, VLMBatch
from vlmkit.losses.base import Loss
from vlmkit.planning.micro_batch import MicroBatch
from vlmkit.planning.parts import Head, Part
from vlmkit.planning.trace import PartTrace, Tracer
from vlmkit.vision.siglip2 import SigLIP2ViT


class PartRuns:
    """Traces the parts of a model on a micro-batch.

    Args:
        tracer: of the precision.
        micro: what the rank is given.
        dims: widths: `vision`, `hidden`, `patch`, `head` and `vision_head`.
        merge_size: side of the window of patches that becomes one visual token.
        loss: of the configuration.
        context: ranks that share the tokens.
        chunk_tokens: rows of logits at a time, where the loss leaves it to the device.
    """

    def __init__(
        self,
        tracer: Tracer,
        micro: MicroBatch,
        dims: dict[str, int],
        merge_size: int,
        loss: Loss,
        context: int = 1,
        chunk_tokens: int | None = None,
    ) -> None:
        self.tracer, self.micro, self.dims = tracer, micro, dims
        self.merge_size, self.loss, self.chunk_tokens = merge_size, loss, chunk_tokens
        self.tokens = -(-micro.tokens // context)
        self.scored = -(-micro.scored // context)
        # a batch without pictures visits the encoder with a blank one
        self.frames = micro.frames or (merge_size**2,)
        self.patches = sum(self.frames)
        self.visual = self.patches // merge_size**2
        padding = micro.tokens - sum(micro.lengths)
        lengths = [*micro.lengths, padding] if padding else list(micro.lengths)
        self.segments = [self.tokens] if context > 1 else lengths

    def trace(self, part: Part, recompute: bool) -> PartTrace:
        """Bytes of a part."""
        run, shapes = getattr(self, f"_{part.kind}")()
        is_vision = part.kind in ("patches", "vision", "merger")
        key = (
            part.signature,
            None if is_vision else self.tokens,
            self.chunk_tokens if part.kind == "loss" else None,
        )
        shared: Sequence[tuple[tuple[int, ...], torch.dtype]] = []
        if part.kind == "vision":
            shared = 2 * [((self.patches, self.dims["vision_head"]), torch.float32)]
        elif part.kind == "patches":
            shared = [((self.patches, self.dims["patch"]), torch.float32)]
        elif part.kind == "decoder":
            shared = 2 * [((1, self.tokens, self.dims["head"]), self.tracer.activations)]
        return self.tracer(key, part.module, run, shapes, part.input_grad, recompute, shared)

    def trace_norm(self, norm: nn.Module, input_grad: bool) -> PartTrace:
        """Bytes of one norm of a decoder layer."""
        shapes = [(1, self.tokens, self.dims["hidden"])]
        return self.tracer(
            ("norm", self.tokens), norm, lambda part, xs, _: [part(xs[0])], shapes, input_grad
        )

    @property
    def shared_bytes(self) -> int:
        """Rotary angles of both transformers, which their layers share."""
        angles = 2 * self.patches * self.dims["vision_head"] * 4
        return angles + 2 * self.tokens * self.dims["head"] * self.tracer.activations.itemsize

    @property
    def batch_bytes(self) -> int:
        """The micro-batch itself: float32 patches with 4 int64 coordinates each; 7 int64 per token."""
        return self.micro.patches * (4 * self.dims["patch"] + 32) + 56 * self.micro.tokens

    def _patches(self) -> tuple[Any, list[tuple[int, ...]]]:
        count = self.patches

        def run(part: Any, _: Sequence[Tensor], batch: Sequence[Tensor]) -> list[Tensor]:
            if not isinstance(getattr(part, "patch_embed", None), nn.Linear):
                return [torch.empty(count, self.dims["vision"])]
            # as SigLIP2ViT.forward, without its blocks; batches come in float32
            coords = torch.zeros(count, 4, dtype=torch.int64)
            x = part.patch_embed(batch[0].to(part.patch_embed.weight.dtype))
            return [x + part.position_table(coords)]

        return run, []

    def _vision(self) -> tuple[Any, list[tuple[int, ...]]]:
        frames = self.frames

        def run(block: nn.Module, xs: Sequence[Tensor], angles: Sequence[Tensor]) -> list[Tensor]:
            return [block(xs[0], (angles[0], angles[1]), Segments.from_lengths(frames))]

        return run, [(self.patches, self.dims["vision"])]

    def _merger(self) -> tuple[Any, list[tuple[int, ...]]]:
        return (lambda part, xs, _: [part(xs[0])]), [(self.patches, self.dims["vision"])]

    def _embedding(self) -> tuple[Any, list[tuple[int, ...]]]:
        def run(part: nn.Module, _: Sequence[Tensor], __: Sequence[Tensor]) -> list[Tensor]:
            return [part(torch.zeros(1, self.micro.tokens, dtype=torch.int64))]

        return run, []

    def _decoder(self) -> tuple[Any, list[tuple[int, ...]]]:
        lengths = self.segments

        def run(layer: nn.Module, xs: Sequence[Tensor], angles: Sequence[Tensor]) -> list[Tensor]:
            rotary = angles[0], angles[1]
            return [layer(xs[0], rotary, Segments.from_lengths(lengths))[0]]

        return run, [(1, self.tokens, self.dims["hidden"])]

    def _loss(self) -> tuple[Any, list[tuple[int, ...]]]:
        tokens, scored = self.tokens, self.scored

        def run(part: nn.Module, xs: Sequence[Tensor], angles: Sequence[Tensor]) -> list[Tensor]:
            assert isinstance(part, Head)
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            batch = VLMBatch(
                input_ids=ids,
                position_ids=torch.zeros(3, 1, tokens, dtype=torch.int64),
                segments=Segments.from_lengths([tokens]),
                visual_index=ids[0, :0],
                labels=ids,
                scored_index=torch.zeros(scored, dtype=torch.int64),
                sample_ids=ids,
                response_ids=ids,
                num_samples=1,
                num_responses=1,
            )
            head: Any = part.head.weight
            chosen: Any = getattr(self.loss, "chunk_tokens", None)
            if chosen is None and self.chunk_tokens is not None:
                self.loss.chunk_tokens = self.chunk_tokens  # type: ignore[assignment]
            try:
                return [self.loss(part.norm(xs[0]), head, batch).numerator]  # type: ignore[arg-type]
            finally:
                if hasattr(self.loss, "chunk_tokens"):
                    self.loss.chunk_tokens = chosen

        return run, [(1, tokens, self.dims["hidden"])]


def dims_of(model: Any) -> dict[str, int]:
    """Widths that inputs of parts have."""
    block = getattr(model.vision, "blocks", [None])[0]
    heads = getattr(getattr(block, "attention", None), "num_heads", 1)
    return {
        "vision": model.vision.dim,
        "patch": model.vision.patch_dim,
        "vision_head": model.vision.dim // heads,
        "hidden": model.decoder.hidden_dim,
        "head": model.decoder.head_dim,
        "is_known_encoder": int(isinstance(model.vision, SigLIP2ViT)),
    }
