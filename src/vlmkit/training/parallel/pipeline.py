"""Pipeline parallelism: ranks have decoder layers each, and work on different micro-batches (1F1B)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from vlmkit.batch import VLMBatch
from vlmkit.language.layers import RouterStats
from vlmkit.losses.base import Loss, LossOutput
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.pipeline_stage import (
    LossElsewhere,
    StagedQwen3VL,
    Stages,
    keep_own_stages,
    plan_stages,
)
from vlmkit.training.parallel.sharding import without_exchange
from vlmkit.training.parallel.tensor import one_line
from vlmkit.training.passes import Objective


def apply_pipeline(
    model: Qwen3VL, meshes: Meshes, hidden_dtype: torch.dtype | None = None
) -> Pipeline | None:
    """Keep this rank's stages of a model. First of all changes.

    Args:
        model: changed in place.
        meshes: of all ranks.
        hidden_dtype: of hidden states between stages; None: that of the weights.

    Returns:
        What runs the micro-batches of a step; None where nothing is divided.

    Raises:
        ConfigError: see `plan_stages`.
    """
    layout = meshes.layout
    if layout.pipeline == 1:
        return None
    layers = plan_stages(model, layout)
    dtype = hidden_dtype or model.decoder.embedding.weight.dtype
    group = meshes.dense["pipeline"].get_group()
    keep_own_stages(
        model, Stages(layers=layers, group=group, hidden_dtype=dtype, tensor=layout.tensor)
    )
    assert isinstance(model, StagedQwen3VL)
    return Pipeline(model, layout)


class Pipeline:
    """Forward and backward passes of all micro-batches of a step, which move through the stages.

    One backward pass follows each forward pass as soon as it can (1F1B, Narayanan et al., arXiv 2006.09503);
    where a rank has several stages they are interleaved (arXiv 2104.04473).
    """

    def __init__(self, model: StagedQwen3VL, layout: Layout) -> None:
        """Keep the parts.

        Args:
            model: this rank's stages.
            layout: of all ranks.
        """
        self.model, self.stages, self.layout = model, model.stages, layout
        self._batches: list[VLMBatch] = []
        self._counts: list[int] = []
        self._results: list[LossOutput | None] = []
        self._objective: Objective | None = None
        self._exchange = ExitStack()

    def __call__(
        self, micro_batches: Sequence[VLMBatch], most: int, objective: Objective
    ) -> list[tuple[VLMBatch, LossOutput]]:
        """See `vlmkit.training.passes.Passes`. Micro-batches are the same on all stages.

        Returns:
            On the last stage each micro-batch as it was run, and its loss; on the others nothing.
        """
        count = self.num_passes(most)
        length = max(batch.input_ids.numel() for batch in micro_batches)
        length += -length % (2 * self.layout.tensor)
        # hidden states of one shape pass between the stages
        own = [one_line(batch, length) for batch in micro_batches]
        added = count - len(own)
        self._batches = own + added * [own[-1]]
        self._counts = len(own) * [1] + added * [0]
        self._results = [None for _ in range(count)]
        self._objective = objective
        index = torch.arange(count)
        schedule = self._schedule(count, length, self._batches[0].input_ids.device)
        with ExitStack() as self._exchange:
            self._exchange.enter_context(without_exchange(self.model, self.layout))
            schedule.step(index=index, target=index, losses=[], return_outputs=False)
        pairs = zip(own, self._results, strict=False)
        found = [(batch, result) for batch, result in pairs if result is not None]
        self._batches, self._results, self._objective = [], [], None
        return found

    def loss_here(self, loss: Loss) -> Loss | LossElsewhere:
        """The loss on the rank with the last stage; on the others what they need of it."""
        is_here = any(self.stages.is_last(stage) for stage in self.stages.own)
        return loss if is_here else LossElsewhere(loss)

    def num_passes(self, most: int) -> int:
        """How many micro-batches the schedule takes for `most`; those that are added have no weight."""
        size = dist.get_world_size(self.stages.group)
        count = max(most, size)
        if self.layout.virtual_stages > 1:  # rounds of equally many
            while count % (count // size):
                count += 1
        return count

    def run(self, stage: int, index: int, hidden: Tensor | None) -> Tensor:
        """Pass a micro-batch through a stage of this rank.

        Args:
            stage: of the whole pipeline.
            index: of the micro-batch.
            hidden: (1, own tokens, dim), from the stage before.

        Returns:
            Hidden states, or on the last stage what to minimise, ().
        """
        objective, counts = self._objective, self._counts[index]
        assert objective is not None

        def read_out(hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> Tensor:
            result: LossOutput = objective.loss(hidden, head_weight, batch)
            # without its graph, which would outlive the backward pass
            self._results[index] = replace(result, numerator=result.numerator.detach())
            return objective.of_loss(result, counts)

        def balance(stats: RouterStats) -> Tensor:
            return objective.of_routing(stats, counts)

        out: Tensor = self.model(
            self._batches[index],
            read_out=read_out,
            stage=stage,
            hidden=hidden,
            balance=balance if objective.routing is not None else None,
        )
        if index == len(self._batches) - 1:  # its backward pass is the last one of the stage
            out.register_hook(lambda gradient: self._exchange.close())
        return out

    def _schedule(self, count: int, length: int, device: torch.device) -> Any:
        """Made anew for each step, as it holds buffers of one shape."""
        shape = (1, length // self.stages.tensor, self.model.decoder.hidden_dim)

        def hidden() -> Tensor:
            dtype = self.stages.hidden_dtype
            return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

        def objective() -> Tensor:
            return torch.empty((), dtype=torch.float32, device="meta", requires_grad=True)

        made = [
            PipelineStage(
                _Stage(self, stage),
                stage,
                len(self.stages.layers),
                device,
                input_args=() if self.stages.is_first(stage) else (hidden(),),
                output_args=(objective() if self.stages.is_last(stage) else hidden(),),
                group=self.stages.group,
            )
            for stage in self.stages.own
        ]
        settings: dict[str, Any] = {"loss_fn": _as_it_is, "scale_grads": False}
        if len(made) == 1:
            return Schedule1F1B(made[0], count, **settings)
        return ScheduleInterleaved1F1B(made, count, **settings)  # type: ignore[arg-type]


class _Stage(nn.Module):
    """A stage as the schedule sees it. It hides that weights are sharded, which happens as ever."""

    def __init__(self, pipeline: Pipeline, stage: int) -> None:
        super().__init__()
        self.pipeline, self.stage = pipeline, stage

    def forward(self, *hidden: Tensor, index: Tensor) -> Tensor:
        """Hidden states of the stage before, if there is one, and the number of the micro-batch, (1,)."""
        return self.pipeline.run(self.stage, int(index), hidden[0] if hidden else None)


def _as_it_is(output: Tensor, _: Tensor) -> Tensor:
    return output
