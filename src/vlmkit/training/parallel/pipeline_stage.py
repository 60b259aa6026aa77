"""A stage of the pipeline: some decoder layers, and what stands at their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlmkit.batch import VisualTokens, VLMBatch
from vlmkit.errors import ConfigError
from vlmkit.language.kv_cache import Past
from vlmkit.language.layers import RouterStats
from vlmkit.language.moe import MixtureOfExperts
from vlmkit.losses.base import Loss, TokenScores
from vlmkit.models.qwen3vl import ModelOutput, Qwen3VL, ReadOut
from vlmkit.training.parallel.layout import Layout


def split_layers(num_layers: int, num_stages: int, at_least_first: int = 1) -> list[range]:
    """Decoder layers of each stage, as evenly as may be.

    Args:
        num_layers: of the decoder.
        num_stages: in the order in which hidden states pass them.
        at_least_first: layers that must be on the first stage.

    Raises:
        ConfigError: there are too few layers; says how many it takes.
    """
    first = max(1, at_least_first, num_layers // num_stages)
    others = num_stages - 1
    if first + others > num_layers:
        raise ConfigError(
            f"{num_stages} pipeline stages take at least {max(1, at_least_first) + others} decoder layers "
            f"({max(1, at_least_first)} on the first, where vision enters), the model has {num_layers}: take "
            "a smaller parallel.pipeline or parallel.virtual_stages"
        )
    bounds = [0, first]
    for stage in range(1, num_stages):
        bounds.append(bounds[-1] + (num_layers - first + stage - 1) // others)
    return [range(start, stop) for start, stop in pairwise(bounds)]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Which layers stand where.

    Stage `part * group size + rank` is part `part` of group rank `rank`.

    Attributes:
        layers: of each stage.
        group: ranks with the other stages, for the same samples.
        hidden_dtype: of hidden states between stages.
        tensor: ranks that share the tokens of hidden states between stages; each passes its own on.
    """

    layers: tuple[range, ...]
    group: dist.ProcessGroup
    hidden_dtype: torch.dtype
    tensor: int = 1

    @property
    def own(self) -> range:
        """Stages of this rank, in the order of the layers."""
        first, size = dist.get_rank(self.group), dist.get_world_size(self.group)
        return range(first, len(self.layers), size)

    def is_first(self, stage: int) -> bool:
        """Whether tokens enter there."""
        return stage == 0

    def is_last(self, stage: int) -> bool:
        """Whether the head is there."""
        return stage == len(self.layers) - 1

    def rank_of(self, stage: int) -> int:
        """Global rank that has a stage."""
        return dist.get_global_rank(self.group, stage % dist.get_world_size(self.group))


class Elsewhere(nn.Module):
    """Stands for a part that another stage has: no parameters, no blocks to compile, no work to count.

    Attributes:
        merge_size: of the part, where it has one.
    """

    receiving_layers: tuple[int, ...] = ()

    def __init__(self, part: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.merge_size = getattr(part, "merge_size", 1)
        self.weight = torch.zeros(0)


class LossElsewhere:
    """What ranks without the head know of the loss. No module, so that nothing waits for it to run."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def denominator(self, batch: VLMBatch) -> Tensor:
        """See `Loss.denominator`."""
        return self._loss.denominator(batch)

    def score(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> TokenScores:
        """Never called: see `StagedQwen3VL.run_stage`."""
        raise RuntimeError("the last stage of the pipeline computes the loss")


class StagedQwen3VL(Qwen3VL):
    """What a rank keeps of a model. Names of parameters are those of the whole model.

    Attributes:
        stages: of the whole pipeline.
        stage_group: of the ranks with the other stages; tells `whole_state` to collect theirs.
    """

    stages: Stages
    stage_group: dist.ProcessGroup

    def forward(
        self,
        batch: VLMBatch,
        visual: VisualTokens | None = None,
        cache: Past | None = None,
        read_out: ReadOut | None = None,
        stage: int | None = None,
        hidden: Tensor | None = None,
        balance: Callable[[RouterStats], Tensor] | None = None,
    ) -> Any:
        """One stage, or the whole pipeline in turn, which takes no gradient.

        Args:
            batch: the same on all stages.
            visual: not known here.
            cache: not known here.
            read_out: applies the head, on the last stage.
            stage: the one to run; None runs all of this rank, and waits for those of the others.
            hidden: (batch, own seq, dim), from the stage before.
            balance: what the stage's routing adds to the objective, (); minimised wherever the stage is.

        Returns:
            Of a stage: hidden states, or what `read_out` has made of them. Of all: a `ModelOutput`, whose
            `read_out` is None but on the rank with the last stage.

        Raises:
            ConfigError: text is to be generated while the model is divided.
        """
        if visual is not None or cache is not None:
            raise ConfigError(
                "a model that is divided over parallel.pipeline cannot generate: load its checkpoint whole"
            )
        if stage is not None:
            out, stats = self.run_stage(stage, batch, hidden, read_out, balance)
            return out
        if torch.is_grad_enabled():
            raise RuntimeError("a pipeline trains by its schedule: see `Pipeline`")
        rows, length = batch.input_ids.shape
        shape = (rows, length // self.stages.tensor, self.decoder.hidden_dim)
        found = router = None
        for own in self.stages.own:
            if not self.stages.is_first(own):
                hidden = torch.empty(
                    shape, dtype=self.stages.hidden_dtype, device=batch.input_ids.device
                )
                dist.recv(hidden, self.stages.rank_of(own - 1), group=self.stages.group)
            result, stats = self.run_stage(own, batch, hidden, read_out)
            router = _sum(router, stats)
            if self.stages.is_last(own):
                found = result
            else:
                hidden = result
                dist.send(hidden, self.stages.rank_of(own + 1), group=self.stages.group)
        assert hidden is not None
        return ModelOutput(hidden=hidden, router=router, read_out=found)

    def run_stage(
        self,
        stage: int,
        batch: VLMBatch,
        hidden: Tensor | None,
        read_out: ReadOut | None,
        balance: Callable[[RouterStats], Tensor] | None = None,
    ) -> tuple[Any, RouterStats | None]:
        """Layers of a stage, and what their routers did; see `forward`."""
        visual: VisualTokens | None = None
        if self.stages.is_first(stage):
            visual = self.encode_vision(batch)
            hidden = self.decoder.embedding(batch.input_ids)
            placed = visual.embeddings.to(hidden.dtype)
            hidden = hidden.flatten(0, 1).index_copy(0, visual.index, placed).view_as(hidden)
        assert hidden is not None
        rotary = self.position(batch.position_ids, hidden.dtype)
        router: RouterStats | None = None
        for index in self.stages.layers[stage]:
            layer = self.decoder.layers[str(index)]
            hidden, stats = layer(hidden, rotary, batch.segments, batch.padding_mask, None)
            if visual is not None:
                hidden = self.fusion(hidden, index, visual)
            router = _sum(router, stats)
        if router is not None and balance is not None:
            hidden = _AlsoMinimise.apply(hidden, balance(router))
            assert hidden is not None
        if not self.stages.is_last(stage):
            hidden = hidden.to(self.stages.hidden_dtype).contiguous()
            return hidden.clone() if hidden._is_view() else hidden, router  # FSDP hooks no views
        hidden = self.decoder.norm(hidden)
        if read_out is None:
            return None, router
        return read_out(hidden, self.decoder.head_weight, batch), router


class _AlsoMinimise(torch.autograd.Function):
    """Hidden states as they are; their backward pass is that of a loss too."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss.detach()
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.ones_like(ctx.like)


def _sum(first: RouterStats | None, second: RouterStats | None) -> RouterStats | None:
    return second if first is None else first if second is None else first + second


def plan_stages(model: Qwen3VL, layout: Layout) -> tuple[range, ...]:
    """Decoder layers of each stage.

    Raises:
        ConfigError: too few layers, a tied head, or nothing to train on a rank.
    """
    size = layout.pipeline
    if model.decoder.head is None:
        raise ConfigError(
            f"parallel.pipeline={size}: embedding and head are one matrix, but stand on different stages; "
            "take a model with size.tie_embeddings=false, or parallel.pipeline=1"
        )
    if next(model.position.parameters(), None) is not None:
        raise ConfigError(
            f"parallel.pipeline={size}: position {type(model.position).__name__} has parameters, which "
            "all stages would share; take parallel.pipeline=1"
        )
    kinds = [
        isinstance(layer.feed_forward, MixtureOfExperts) for layer in model.decoder.layers.values()
    ]
    if any(kinds) and not all(kinds):
        raise ConfigError(
            f"parallel.pipeline={size}: some decoder layers have experts and some have none, so that stages "
            "could not count routing together; take parallel.pipeline=1"
        )
    layers = split_layers(
        model.decoder.num_layers,
        size * layout.virtual_stages,
        max(model.fusion.receiving_layers, default=-1) + 1,
    )
    for rank in range(size):
        parts = _parts(model, layers, range(rank, len(layers), size))
        if not any(p.requires_grad for part in parts for p in part.parameters()):
            raise ConfigError(
                f"parallel.pipeline={size}: nothing on rank {rank} of the pipeline is trained; train the "
                "decoder too, or take parallel.pipeline=1"
            )
    return tuple(layers)


def keep_own_stages(model: Qwen3VL, stages: Stages) -> None:
    """Make a `StagedQwen3VL` of a whole model, in place."""
    own = stages.own
    decoder = model.decoder
    kept = {str(index) for stage in own for index in stages.layers[stage]}
    for key in list(decoder.layers):
        if key not in kept:
            del decoder.layers[key]
    if not any(stages.is_first(stage) for stage in own):
        for name in ("vision", "merger", "fusion"):
            setattr(model, name, Elsewhere(getattr(model, name)))
        decoder.embedding = Elsewhere()  # type: ignore[assignment]
    if not any(stages.is_last(stage) for stage in own):
        decoder.norm, decoder.head = Elsewhere(), Elsewhere()  # type: ignore[assignment]
    model.__class__ = StagedQwen3VL
    assert isinstance(model, StagedQwen3VL)
    model.stages, model.stage_group = stages, stages.group


def _parts(model: Qwen3VL, layers: Sequence[range], own: range) -> Sequence[nn.Module]:
    """What the rank with these stages keeps."""
    decoder = model.decoder
    parts = [decoder.layers[str(index)] for stage in own for index in layers[stage]]
    if 0 in own:
        parts += [model.vision, model.merger, model.fusion, decoder.embedding]
    if len(layers) - 1 in own:
        assert decoder.head is not None
        parts += [decoder.norm, decoder.head]
    return parts
