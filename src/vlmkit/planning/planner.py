"""A layout on a device -> what it holds, how fast it is, and whether it fits."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmkit.losses.base import Loss
from vlmkit.losses.chunks import BYTES_PER_LOGIT, FEWEST, MOST, SHARE
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.planning.communication import Communication, Traffic
from vlmkit.planning.device import Device
from vlmkit.planning.memory import Divided, Memory, Timeline
from vlmkit.planning.micro_batch import MicroBatch
from vlmkit.planning.parts import Part, parts_of, stages_of_line
from vlmkit.planning.runs import PartRuns, dims_of
from vlmkit.planning.state import Precision
from vlmkit.planning.trace import FlashStandIn, Tracer
from vlmkit.training.meters.flops import Flops, ModelFlops
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.refusals import check_layout


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """Of all layers, divided over tensor and expert ranks only: numbers of weights, bytes of moments."""

    dense: float
    experts: float
    dense_moments: float
    expert_moments: float

    @property
    def whole(self) -> float:
        """Numbers of all weights."""
        return self.dense + self.experts


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a step, without those of the optimiser; see `Plan`."""

    traffic: Sequence[Traffic]
    compute_s: float
    exposed_s: float
    bubble_s: float

    @property
    def total_s(self) -> float:
        """Their sum."""
        return self.compute_s + self.exposed_s + self.bubble_s


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a layout will need.

    Attributes:
        layout: whose ranks add up to `layout.world_size`.
        memory: of the rank that holds most.
        fits: whether that is within the device's usable memory.
        traffic: of the busiest stage.
        flops: of a micro-batch, by component, by definition: recomputation does not count.
        micro_batches: of a step on each data rank.
        step_tokens: of all ranks, without padding.
        compute_s: of the slowest stage, all micro-batches; at the device's achievable rate.
        exposed_s: communication that nothing hides.
        bubble_s: waiting for the pipeline to fill and to drain.
        optimizer_s: reading and writing the training state.
        mfu: share of the peak of all devices that the FLOPs by definition reach.
    """

    layout: Layout
    device: Device
    memory: Memory
    fits: bool
    traffic: Sequence[Traffic]
    flops: Flops
    micro_batches: int
    step_tokens: float
    compute_s: float
    exposed_s: float
    bubble_s: float
    optimizer_s: float
    mfu: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.exposed_s + self.bubble_s + self.optimizer_s

    @property
    def tokens_per_s(self) -> float:
        """Of all ranks."""
        return self.step_tokens / self.step_s

    def as_json(self) -> dict[str, Any]:
        """All numbers, plain."""
        return {
            "layout": {
                **self.layout.sizes,
                "expert": self.layout.expert,
                "zero": self.layout.zero,
                "virtual_stages": self.layout.virtual_stages,
            },
            "ranks": self.layout.world_size,
            "device": {**vars(self.device)},
            "fits": self.fits,
            "memory": {
                "total": self.memory.total,
                "at": self.memory.at,
                "own_parameters": self.memory.parameters,
                "bytes": dict(self.memory.lines),
                "phases": {name: {**vars(phase)} for name, phase in self.memory.phases.items()},
            },
            "communication": [{**vars(traffic)} for traffic in self.traffic],
            "flops_of_a_micro_batch": {
                "forward": dict(self.flops.forward),
                "backward": dict(self.flops.backward),
            },
            "micro_batches": self.micro_batches,
            "tokens_per_step": self.step_tokens,
            "seconds": {
                "step": self.step_s,
                "compute": self.compute_s,
                "exposed_communication": self.exposed_s,
                "bubble": self.bubble_s,
                "optimizer": self.optimizer_s,
            },
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
        }


class Planner:
    """Plans one model on one kind of device under many layouts.

    Args:
        model: on meta, with adapters, frozen as it will be.
        micro: what a data rank is given at a time.
        rows_per_step: of all ranks.
        rows_per_micro_batch: of one.
        precision: of weights and matrix products.
        moments: bytes of optimiser state per number of each trained parameter.
        loss: of the configuration.
        device: what it runs on.
        recompute: every how many decoder layers and vision blocks are computed again; 0: none.
    """

    def __init__(
        self,
        *,
        model: Qwen3VL,
        micro: MicroBatch,
        rows_per_step: float,
        rows_per_micro_batch: int,
        precision: Precision,
        moments: Mapping[str, float],
        loss: Loss,
        device: Device,
        recompute: tuple[int, int] = (0, 0),
    ) -> None:
        self.model, self.micro, self.device = model, micro, device
        self.rows_per_step, self.rows_per_micro_batch = rows_per_step, rows_per_micro_batch
        self.precision, self.moments, self.loss = precision, moments, loss
        self.recompute = recompute
        self.flops = ModelFlops(model).of(micro.work)
        self._lines: dict[tuple[int, int], list[Part]] = {}
        self._sums_of: dict[tuple[int, int], _Sums] = {}
        self._tracers: dict[torch.dtype, Tracer] = {}

    def plan(self, layout: Layout) -> Plan:
        """Under a layout whose sizes are all given.

        Raises:
            ConfigError: the model does not divide that way; says why.
        """
        check_layout(layout, self.model, self.loss)
        divided = Divided(layout=layout, precision=self.precision, is_mesh=layout.zero > 0)
        line = self._line(layout)
        runs = self._runs(layout, divided)
        micro_batches = self.micro_batches(layout)
        stages = stages_of_line(line, layout, self.model)
        recomputed = self._recomputed(line)
        peaks = [
            Timeline(
                stage, runs, divided, self.moments, recomputed, micro_batches,
                in_flight=min(micro_batches, layout.pipeline - s),
            ).memory()
            for s, stage in enumerate(stages)
        ]  # fmt: skip
        memory = max(peaks, key=lambda peak: peak.total)
        timing = self._timing(layout, divided, stages, runs)
        state = memory.lines.get("weights", 0.0) + memory.lines.get("moments", 0.0)
        optimizer = self._optimizer_s(state)
        data_ranks = layout.num_data_ranks
        total = timing.total_s + optimizer
        per_step = micro_batches * data_ranks
        used = self.flops.total * per_step / layout.world_size / total
        return Plan(
            layout=layout,
            device=self.device,
            memory=memory,
            fits=memory.total <= self.device.usable_bytes,
            traffic=timing.traffic,
            flops=self.flops,
            micro_batches=micro_batches,
            step_tokens=self.micro.work.tokens * per_step,
            compute_s=timing.compute_s,
            exposed_s=timing.exposed_s,
            bubble_s=timing.bubble_s,
            optimizer_s=optimizer,
            mfu=used / (self.device.peak_tflops * 1e12),
        )

    def least_bytes(self, layout: Layout) -> float:
        """Weights and moments of a rank, and whole weights where they stay whole: no rank can do with less.

        Nothing is traced. A pipeline's stages are taken as equally large, which they are at best.
        """
        divided = Divided(layout=layout, precision=self.precision, is_mesh=layout.zero > 0)
        found = self._state(layout, divided)
        if divided.is_mesh and layout.zero < 3:
            each = divided.used_bytes + (divided.reduced_bytes if layout.zero == 1 else 0)
            found += self._sums(layout).whole * each  # gradients too, until the optimiser steps
        return found / layout.pipeline

    def estimated_tokens_per_s(self, layout: Layout) -> float:
        """Of all ranks, without tracing memory, which the optimiser's time depends on a little."""
        divided = Divided(layout=layout, precision=self.precision, is_mesh=layout.zero > 0)
        line = self._line(layout)
        stages = stages_of_line(line, layout, self.model)
        timing = self._timing(layout, divided, stages, self._runs(layout, divided))
        seconds = timing.total_s + self._optimizer_s(self._state(layout, divided) / layout.pipeline)
        per_step = self.micro_batches(layout) * layout.num_data_ranks
        return self.micro.work.tokens * per_step / seconds

    def _state(self, layout: Layout, divided: Divided) -> float:
        """Bytes of weights and moments of a rank that has all layers."""
        sums, weight = self._sums(layout), divided.precision.weight_bytes
        dense = sums.dense * weight + sums.dense_moments
        experts = sums.experts * weight + sums.expert_moments
        if not divided.is_mesh:
            return dense + experts
        return dense / (layout.shard * layout.context) + experts / layout.expert_shard

    def _sums(self, layout: Layout) -> _Sums:
        key = layout.tensor, layout.expert
        if key not in self._sums_of:
            moments = {True: 0.0, False: 0.0}
            line = self._line(layout)
            for part in line:
                for name, n in part.trained.items():
                    each = self.moments.get(f"{part.prefix}.{name}", 0.0)
                    moments[name in part.expert_names] += n * each
            owned = [part for part in line if part.owns_weights]
            self._sums_of[key] = _Sums(
                dense=sum(part.dense for part in owned),
                experts=sum(part.experts for part in owned),
                dense_moments=moments[False],
                expert_moments=moments[True],
            )
        return self._sums_of[key]

    def _optimizer_s(self, state: float) -> float:
        """Reading and writing the training state."""
        return 2 * state / (self.device.memory_bandwidth_gb_s * 1e9)

    def _timing(
        self, layout: Layout, divided: Divided, stages: Sequence[Sequence[Part]], runs: PartRuns
    ) -> Timing:
        """Of the slowest stage."""
        micro_batches = self.micro_batches(layout)
        rate = self.device.peak_tflops * 1e12 * self.device.achievable
        seconds = [micro_batches * flops / rate for flops in self._stage_flops(stages, layout)]
        traffics = [Communication(divided, self.device, runs, micro_batches).of(s) for s in stages]
        exposed = [
            sum(t.seconds for t in found if not t.hides)
            + max(0.0, sum(t.seconds for t in found if t.hides) - self.device.overlap * compute)
            for found, compute in zip(traffics, seconds, strict=True)
        ]
        slowest = max(range(len(stages)), key=lambda s: seconds[s] + exposed[s])
        both = seconds[slowest] + exposed[slowest]
        return Timing(
            traffic=traffics[slowest],
            compute_s=seconds[slowest],
            exposed_s=exposed[slowest],
            bubble_s=(layout.pipeline - 1) / layout.virtual_stages / micro_batches * both,
        )

    def micro_batches(self, layout: Layout) -> int:
        """Of a step on each data rank; at least one."""
        each = self.rows_per_step / layout.num_data_ranks / self.rows_per_micro_batch
        count = max(math.ceil(each - 1e-9), 1)
        return max(count, layout.pipeline) if layout.pipeline > 1 else count

    def _line(self, layout: Layout) -> list[Part]:
        key = layout.tensor, layout.expert
        if key not in self._lines:
            self._lines[key] = parts_of(self.model, layout)
        return self._lines[key]

    def _runs(self, layout: Layout, divided: Divided) -> PartRuns:
        dtype = self.precision.compute if divided.is_mesh else self.precision.weights
        if dtype not in self._tracers:
            attention = FlashStandIn() if self.device.flash_attention else None
            self._tracers[dtype] = Tracer(dtype, dtype, self.precision.autocast, attention)
        budget = self.device.memory_gib * 2**30 * SHARE / BYTES_PER_LOGIT
        fitting = int(budget / (self.model.decoder.vocab_size // layout.tensor))
        chunk = min(max(1 << max(fitting.bit_length() - 1, 0), FEWEST), MOST)
        return PartRuns(
            self._tracers[dtype], self.micro, dims_of(self.model), self.model.merger.merge_size,
            self.loss, layout.context, chunk,
        )  # fmt: skip

    def _recomputed(self, line: Sequence[Part]) -> frozenset[str]:
        found: list[str] = []
        for every, kind in zip(self.recompute, ("decoder", "vision"), strict=True):
            if every:
                found += [part.name for part in line if part.kind == kind][::every]
        return frozenset(found)

    def _stage_flops(self, stages: Sequence[Sequence[Part]], layout: Layout) -> list[float]:
        """FLOPs of one rank of each stage in one micro-batch, recomputation included."""
        again: defaultdict[str, float] = defaultdict(float)
        for every, names in zip(
            self.recompute, (("decoder", "router", "experts"), ("vision",)), strict=True
        ):
            for name in names:
                again[name] = self.flops.forward.get(name, 0.0) / every if every else 0.0
        cost = {
            name: forward + self.flops.backward.get(name, 0.0) + again[name]
            for name, forward in self.flops.forward.items()
        }
        tensor, context = layout.tensor, layout.context
        layers = self.model.decoder.num_layers
        found = []
        for stage in stages:
            own = sum(part.kind == "decoder" for part in stage) / layers
            layer = sum(cost.get(name, 0.0) for name in ("decoder", "router", "experts"))
            flops = own * layer / tensor / context
            if any(part.kind == "vision" for part in stage):
                # every context rank encodes all pictures
                flops += sum(cost.get(n, 0.0) for n in ("vision", "merger", "fusion")) / tensor
            if any(part.kind == "loss" for part in stage):
                flops += cost.get("head", 0.0) / tensor / context
            found.append(flops)
        return found


def on(planner: Planner, device: Device) -> Planner:
    """The same on another kind of device; what has been traced holds there too."""
    other = copy.copy(planner)
    other.device = device
    if device.flash_attention != planner.device.flash_attention:
        other._tracers = {}
    return other


def parameters(model: nn.Module) -> int:
    """Shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
