"""Context parallelism: ranks share the tokens of each row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.batch import VisualTokens, VLMBatch
from vlmkit.errors import ConfigError
from vlmkit.fusion.deepstack import DeepStack
from vlmkit.fusion.none import NoFusion
from vlmkit.language.attention import GroupedQueryAttention
from vlmkit.losses.base import Loss, LossOutput, TokenScores
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.parallel.context_attention import ContextAttention, own_chunks
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.tensor import one_line


def apply_context_parallel(model: Qwen3VL, meshes: Meshes) -> None:
    """Divide the tokens of the decoder over `meshes.context`.

    After tensor parallelism, before recomputation, compilation and `fully_shard`, which must sum gradients
    over `meshes.tokens`. All ranks of the group must be given the same batches. Each encodes all pictures
    and embeds all tokens, keeps its own chunks of the line, and ends with their hidden states,
    (1, own tokens, dim); the loss must be `context_parallel(loss, meshes)`.

    With a cache, as in generation, nothing is divided: all ranks compute the same.

    Raises:
        ConfigError: heads do not divide; see also `check`.
    """
    layout = meshes.layout
    if layout.context == 1:
        return
    check(model, layout)
    group = meshes.context.get_group()
    divided: dict[int, ContextAttention] = {}  # layers share their back end, and what it remembers
    for layer in model.decoder.layers.values():
        attention = layer.attention
        assert isinstance(attention, GroupedQueryAttention)
        inner = attention.attention
        shared = divided.get(id(inner)) or layout.context_attention(inner, group)
        shared.check(attention.num_heads, attention.num_kv_heads)
        attention.attention = divided[id(inner)] = shared
    own = _OwnTokens(
        OwnPlaces(meshes.context.get_local_rank(), layout.context),
        unit=2 * layout.context * layout.tensor,
    )
    first = next(iter(model.decoder.layers.values()))
    model.register_forward_pre_hook(own.of_batch, with_kwargs=True)
    # what is divided over tensor ranks is what a context rank has
    first.register_forward_pre_hook(own.of_hidden, prepend=True)
    model.fusion.register_forward_pre_hook(own.of_visual, prepend=True)


def check(model: Qwen3VL, layout: Layout) -> None:
    """Make sure that the tokens of a model can be divided.

    Raises:
        ConfigError: the fusion is of a kind that is not known here.
    """
    if layout.context > 1 and not isinstance(model.fusion, DeepStack | NoFusion):
        raise ConfigError(
            f"parallel.context={layout.context}: fusion {type(model.fusion).__name__} cannot be divided; "
            "take parallel.context=1"
        )


def check_loss(loss: Loss, layout: Layout) -> None:
    """Make sure that the tokens of a loss can be divided.

    Raises:
        ConfigError: it knows no divided tokens.
    """
    if layout.context > 1 and not isinstance(loss, CrossEntropy):
        raise ConfigError(
            f"{type(loss).__name__} knows no tokens divided over parallel.context={layout.context} ranks; "
            "take CrossEntropy, or parallel.context=1"
        )


class OwnPlaces:
    """Which tokens of a line a rank has, and where."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def cut(self, line: Tensor, dim: int) -> Tensor:
        """See `own_chunks`."""
        return own_chunks(line, dim, self.rank, self.ranks)

    def find(self, index: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Places among the own tokens of places in a line, and which of them the rank has.

        Args:
            index: (n,) int64.
            num_tokens: of the line.

        Returns:
            (n,) int64, any own place where the token is another's; (n,) bool.
        """
        chunk_length = num_tokens // (2 * self.ranks)
        chunk, place = index // chunk_length, index % chunk_length
        is_late = chunk == 2 * self.ranks - 1 - self.rank
        return place + chunk_length * is_late, is_late | (chunk == self.rank)


class _OwnTokens:
    """Hooks that cut what a model computes with; `num_tokens` is that of the line under way."""

    def __init__(self, places: OwnPlaces, unit: int) -> None:
        self.places, self.unit = places, unit
        self.num_tokens: int | None = None  # None: not divided

    def of_batch(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the model: rows end to end; positions and padding of own tokens, all else whole."""
        self.num_tokens = None
        if kwargs.get("cache") is not None or (len(args) > 2 and args[2] is not None):
            return None
        batch = one_line(args[0] if args else kwargs["batch"], self.unit)
        self.num_tokens = batch.input_ids.numel()
        mask = batch.padding_mask
        batch = replace(
            batch,
            position_ids=self.places.cut(batch.position_ids, 2),
            padding_mask=None if mask is None else self.places.cut(mask, 1),
        )
        return ((batch, *args[1:]), kwargs) if args else (args, {**kwargs, "batch": batch})

    def of_hidden(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the first decoder layer."""
        return None if self.num_tokens is None else (self.places.cut(args[0], 1), *args[1:])

    def of_visual(
        self, fusion: DeepStack | NoFusion, args: tuple[Tensor, int, VisualTokens]
    ) -> tuple[Tensor, int, VisualTokens] | None:
        """Before the fusion. Nothing waits for the device: others' features add zero somewhere."""
        hidden, layer_idx, visual = args
        if self.num_tokens is None or layer_idx not in fusion.receiving_layers:
            return None
        index, is_own = self.places.find(visual.index, self.num_tokens)
        levels = list(visual.levels)
        received = fusion.receiving_layers.index(layer_idx)
        levels[received] = torch.where(is_own[:, None], levels[received], 0)
        return hidden, layer_idx, replace(visual, index=index, levels=tuple(levels))


class ContextParallelCrossEntropy(Loss):
    """`CrossEntropy` of the own tokens, weighted as on one rank; over the group it adds up to the loss.

    Batches are whole, hidden states the own ones.
    """

    def __init__(self, loss: CrossEntropy, places: OwnPlaces) -> None:
        super().__init__()
        self.loss, self.places = loss, places

    def forward(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> LossOutput:
        """See `Loss.forward`."""
        own, is_own = self._own(batch)
        weights = self.loss.weights(batch)[is_own]
        result = self.loss(hidden, head_weight, own, weights)
        assert own.sample_ids is not None
        return replace(result, sample_ids=own.sample_ids.flatten()[own.scored_index])

    def denominator(self, batch: VLMBatch) -> Tensor:
        """See `Loss.denominator`; that of the whole batch, on all ranks."""
        return self.loss.denominator(batch)

    def score(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> TokenScores:
        """See `Loss.score`; of own tokens."""
        return self.loss.score(hidden, head_weight, self._own(batch)[0])

    def _own(self, batch: VLMBatch) -> tuple[VLMBatch, Tensor]:
        """What scoring reads, cut to own tokens; which of the scored ones these are, (scored_tokens,) bool.

        The only place of a micro-batch that waits for the device.
        """
        if batch.scored_index is None or batch.labels is None or batch.sample_ids is None:
            raise ValueError("the batch has no labels: this one was made for generation")
        index, is_own = self.places.find(batch.scored_index, batch.input_ids.numel())
        own = replace(
            batch,
            labels=self.places.cut(batch.labels, 1),
            sample_ids=self.places.cut(batch.sample_ids, 1),
            scored_index=index[is_own],
        )
        return own, is_own


def context_parallel(loss: Loss, meshes: Meshes) -> Loss:
    """The loss as it must be with `apply_context_parallel`; unchanged where nothing is divided.

    After `vocab_parallel`.

    Raises:
        ConfigError: see `check_loss`.
    """
    context = meshes.layout.context
    if context == 1:
        return loss
    check_loss(loss, meshes.layout)
    assert isinstance(loss, CrossEntropy)
    return ContextParallelCrossEntropy(loss, OwnPlaces(meshes.context.get_local_rank(), context))
