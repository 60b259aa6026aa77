"""Qwen3-VL (arXiv 2511.21631), figure 1: a vision encoder, a merger, a fusion, and a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.batch import VisionInputs, VisualTokens, VLMBatch
from vlmkit.fusion.base import Fusion
from vlmkit.language.decoder import Decoder
from vlmkit.language.kv_cache import Past
from vlmkit.language.layers import RouterStats
from vlmkit.position.mrope import MRoPE
from vlmkit.sequence import SpecialTokens
from vlmkit.vision.base import VisionEncoder
from vlmkit.vision.merger import PatchMerger


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What a forward pass gives; the head is applied by the loss, or by `Qwen3VL.logits`."""

    hidden: Tensor  # (batch, seq, dim), after the final norm
    router: RouterStats | None  # summed over layers; None without experts
    read_out: Any = None  # what `read_out` has made of the hidden states


class ReadOut(Protocol):
    """Makes something of hidden states and the head, such as a loss."""

    def __call__(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> Any:
        """Run inside the forward pass.

        Args:
            hidden: (batch, seq, dim), after the final norm.
            head_weight: (vocab, dim).
            batch: which the model was given.
        """
        ...


class Qwen3VL(nn.Module):
    """Composes the parts. Which ones is configuration; how they meet is here.

    Attributes:
        components: name patterns of what can be trained or frozen by itself; the first that fits
            decides. A tied head has no parameters of its own.
    """

    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("vision.*",),
        "merger": ("merger.*",),
        "position": ("position.*",),
        "fusion": ("fusion.*",),  # DeepStack's mergers
        "embedding": ("decoder.embedding.*",),
        # wildcards before the names: adapters wrap what they adapt
        "router": ("decoder.layers.*.feed_forward.*router.*",),
        "experts": (
            "decoder.layers.*.feed_forward.*gate_up_proj",
            "decoder.layers.*.feed_forward.*down_proj",
            "decoder.layers.*.feed_forward.experts.lora_*",
            "decoder.layers.*.feed_forward.experts.base_layer.lora_*",
        ),
        "decoder": ("decoder.layers.*", "decoder.norm.*"),
        "head": ("decoder.head.*",),
    }

    def __init__(
        self,
        vision: VisionEncoder,
        merger: PatchMerger,
        position: MRoPE,
        fusion: Fusion,
        decoder: Decoder,
        special_tokens: SpecialTokens | None = None,
    ) -> None:
        """Check that the parts fit together and keep them.

        Args:
            vision: patches -> features.
            merger: features of the last block -> visual tokens of decoder width.
            position: (time, height, width) ids -> rotary angles.
            fusion: what else vision adds between decoder layers.
            decoder: the language model.
            special_tokens: ids of placeholders and stops; the full Qwen3 vocabulary's by default.

        Raises:
            ValueError: widths differ, or a fusion taps or feeds a layer that does not exist; names both
                values.
        """
        super().__init__()
        check_parts(vision, merger, position, fusion, decoder)
        self.vision = vision
        self.merger = merger
        self.position = position
        self.fusion = fusion
        self.decoder = decoder
        self.special_tokens = special_tokens or SpecialTokens()

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.decoder.vocab_size

    def reset_parameters(self) -> None:
        """Fill all parameters with initial values."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]

    def encode_vision(self, batch: VLMBatch) -> VisualTokens:
        """All images and video frames of the batch, in one call of the encoder.

        A batch without any still visits the encoder, with one blank picture of which nothing is kept:
        under data parallelism every rank must touch every parameter in every step.
        """
        vision = batch.vision
        if vision is None:
            vision = VisionInputs.blank(self.vision.patch_dim, self.merger.merge_size)
            vision = vision.to(batch.input_ids.device)
        features = self.vision(vision, self.fusion.tapped_blocks)
        embeddings = self.merger(features.last)  # (visual_tokens, dim)
        levels = self.fusion.project(features.levels)
        if batch.vision is None:
            embeddings, levels = embeddings[:0], tuple(level[:0] for level in levels)
        return VisualTokens(index=batch.visual_index, embeddings=embeddings, levels=levels)

    def forward(
        self,
        batch: VLMBatch,
        visual: VisualTokens | None = None,
        cache: Past | None = None,
        read_out: ReadOut | None = None,
    ) -> ModelOutput:
        """Hidden states after the final norm, and what `read_out` makes of them.

        Args:
            batch: packed rows.
            visual: encoded already, when a prompt is fed in pieces; None encodes `batch.vision`.
            cache: past keys and values; of a `KVCache`, rows are one sequence each, without padding.
            read_out: applies the head. It runs in here since sharded weights are whole in here only.
        """
        if visual is None:
            visual = self.encode_vision(batch)
        hidden = self.decoder.embedding(batch.input_ids)  # (batch, seq, dim)
        placed = visual.embeddings.to(hidden.dtype)
        hidden = hidden.flatten(0, 1).index_copy(0, visual.index, placed).view_as(hidden)
        rotary = self.position(batch.position_ids, hidden.dtype)

        router: RouterStats | None = None
        for key, layer in self.decoder.layers.items():
            index = int(key)
            layer_cache = cache.layers[index] if cache is not None else None
            hidden, stats = layer(hidden, rotary, batch.segments, batch.padding_mask, layer_cache)
            hidden = self.fusion(hidden, index, visual)
            if stats is not None:
                router = stats if router is None else router + stats

        if cache is not None:
            cache.advance(batch.input_ids.shape[1])
        hidden = self.decoder.norm(hidden)
        found = read_out(hidden, self.decoder.head_weight, batch) if read_out is not None else None
        return ModelOutput(hidden=hidden, router=router, read_out=found)

    def logits(self, batch: VLMBatch) -> Tensor:
        """(batch, seq, vocab), for inspection and parity; training applies the head in the loss."""
        logits: Tensor = self(batch, read_out=_logits).read_out
        return logits


def _logits(hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> Tensor:
    return F.linear(hidden, head_weight)


def check_parts(
    vision: VisionEncoder, merger: PatchMerger, position: MRoPE, fusion: Fusion, decoder: Decoder
) -> None:
    """Make sure that the parts of a model fit together.

    Raises:
        ValueError: two widths differ, or a fusion taps or feeds a layer that does not exist; names both
            values.
    """
    merge_size = merger.merge_size
    for what, left, right in (
        ("merger.vision_dim and vision.dim", merger.vision_dim, vision.dim),
        ("merger.hidden_dim and decoder.hidden_dim", merger.hidden_dim, decoder.hidden_dim),
        ("position.head_dim and decoder.head_dim", position.head_dim, decoder.head_dim),
        *(
            (f"{name}.merge_size and merger.merge_size", part.merge_size, merge_size)
            for name, part in (("fusion", fusion), ("vision", vision))
            if hasattr(part, "merge_size")
        ),
    ):
        if left != right:
            raise ValueError(f"{what} must be equal, got {left} and {right}")
    for what, chosen, available in (
        ("taps encoder blocks", fusion.tapped_blocks, vision.depth),
        ("feeds decoder layers", fusion.receiving_layers, decoder.num_layers),
    ):
        if any(not 0 <= layer < available for layer in chosen):
            raise ValueError(
                f"fusion {type(fusion).__name__} {what} {list(chosen)}, "
                f"but there are only {available}, counted from 0"
            )
