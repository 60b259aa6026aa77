"""What ranks send each other in a step: calls, bytes and seconds, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vlmkit.language.moe import MixtureOfExperts
from vlmkit.planning.device import Device
from vlmkit.planning.memory import Divided
from vlmkit.planning.parts import Part
from vlmkit.planning.runs import PartRuns

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "send"]
TRIPS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1, "send": 1}
"""How often the payload goes round a ring."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Equal collectives of one step.

    Attributes:
        axis: of the layout.
        kind: which collective.
        calls: of one rank in a step.
        payload: bytes of the whole tensor, of all calls: what a gather returns, what a reduction is given.
        ranks: of the group.
        seconds: of all calls: latency, and trips * payload * (ranks - 1) / ranks over the bandwidth.
        hides: whether it can run behind the computation.
    """

    axis: str
    kind: Kind
    calls: int
    payload: float
    ranks: int
    seconds: float
    hides: bool


class Communication:
    """Counts the traffic of one rank.

    Args:
        divided: layout and precision.
        device: its links.
        runs: sizes of the micro-batch.
        micro_batches: of a step.
    """

    def __init__(
        self, divided: Divided, device: Device, runs: PartRuns, micro_batches: int
    ) -> None:
        self.divided, self.device, self.runs = divided, device, runs
        self.micro_batches = micro_batches

    def of(self, line: Sequence[Part]) -> list[Traffic]:
        """Of a rank with these parts."""
        found = [
            *self._weights(line), *self._tensor(line), *self._context(line), *self._experts(line),
            *self._pipeline(line),
        ]  # fmt: skip
        return [traffic for traffic in found if traffic.calls]

    def _traffic(
        self,
        axis: str,
        kind: Kind,
        calls: int,
        payload: float,
        ranks: int,
        stride: int,
        hides: bool,
    ) -> Traffic:
        share = 1.0 if kind == "send" else (ranks - 1) / ranks
        is_ring = kind not in ("all-to-all", "send")
        moved = TRIPS[kind] * payload * share / self.device.bandwidth(ranks, stride, is_ring)
        return Traffic(
            axis=axis, kind=kind, calls=calls, payload=payload, ranks=ranks,
            seconds=moved + calls * self.device.latency_us * 1e-6, hides=hides,
        )  # fmt: skip

    def _weights(self, line: Sequence[Part]) -> list[Traffic]:
        layout, divided = self.divided.layout, self.divided
        stride = layout.tensor
        trained = [sum(part.trained.values()) for part in line]
        if not divided.is_mesh:
            size = sum(trained) * divided.precision.weight_bytes
            calls = max(1, round(size / (25 * 2**20))) if layout.world_size > 1 else 0
            return [self._traffic(
                "replicate", "all-reduce", calls, size, layout.world_size, 1, True
            )]  # fmt: skip
        units = sum(part.is_unit for part in line) + 1
        trained_units = sum(part.is_unit and n > 0 for part, n in zip(line, trained, strict=True))
        trained_units += any(n and not part.is_unit for part, n in zip(line, trained, strict=True))
        # experts are a unit of their own where they do not live as all weights do
        has_own = layout.expert * layout.tensor > 1
        experts = float(sum(part.experts for part in line)) if has_own else 0.0
        experts_trained = float(sum(
            n for part in line for name, n in part.trained.items()
            if has_own and name in part.expert_names
        ))  # fmt: skip
        numel = float(sum(part.numel for part in line if part.owns_weights)) - experts
        numel_trained = sum(
            n for part in line for name, n in part.trained.items()
            if part.owns_weights or not name.startswith("head.")
        ) - experts_trained  # fmt: skip
        mixtures = sum(part.experts > 0 for part in line) if has_own else 0
        mixtures_trained = mixtures if experts_trained else 0
        gathers = 2 * self.micro_batches if layout.zero == 3 else 1
        reduces = 1 if layout.zero == 1 else self.micro_batches
        found = []
        for axis, ranks, stride, count, count_trained, numbers, numbers_trained in (
            (
                "shard", layout.shard * layout.context, layout.tensor, units, trained_units,
                numel, numel_trained,
            ),
            (
                "expert_shard", layout.expert_shard, layout.expert, mixtures, mixtures_trained,
                experts, experts_trained,
            ),
        ):  # fmt: skip
            if ranks > 1:
                found += [
                    self._traffic(
                        axis, "all-gather", gathers * count,
                        gathers * numbers * divided.used_bytes, ranks, stride, True,
                    ),
                    self._traffic(
                        axis, "reduce-scatter", reduces * count_trained,
                        reduces * numbers_trained * divided.reduced_bytes, ranks, stride, True,
                    ),
                ]  # fmt: skip
            if layout.replicate > 1:
                found.append(self._traffic(
                    "replicate", "all-reduce", count_trained,
                    numbers_trained * divided.reduced_bytes / ranks, layout.replicate,
                    stride * ranks, True,
                ))  # fmt: skip
        return found

    def _hidden(self) -> float:
        """Bytes of the hidden states of a micro-batch on a context rank."""
        return self.runs.tokens * self.runs.dims["hidden"] * self.divided.precision.compute.itemsize

    def _tensor(self, line: Sequence[Part]) -> list[Traffic]:
        ranks = self.divided.layout.tensor
        if ranks == 1:
            return []
        width = self.divided.precision.compute.itemsize
        hidden, dims = self._hidden(), self.runs.dims
        patches = self.runs.patches * dims["vision"] * width
        visual = self.runs.visual * dims["hidden"] * width
        found: dict[Kind, tuple[int, float]] = {}

        def add(kind: Kind, calls: int, payload: float) -> None:
            before = found.get(kind, (0, 0.0))
            found[kind] = before[0] + calls, before[1] + calls * payload

        mergers = sum(part.kind == "merger" for part in line)
        for part in line:
            backward = int(part.input_grad or bool(part.trained))
            if part.kind == "decoder":
                # tokens are gathered and scattered around attention and matrices, forward and backward
                mixture = _mixture(part)
                times = 1 if mixture is not None else 2
                add("all-gather", times * (1 + backward), hidden)
                add("reduce-scatter", times * (1 + backward), hidden)
                if mixture is not None:  # statistics; and the router, which sees own tokens
                    add("all-reduce", 1, (2 * part.num_experts + 1) * 4)
                    trained = part.trained.get("feed_forward.router.weight", 0)
                    add("all-reduce", int(trained > 0), trained * width)
                for gain in ("attention_norm", "feed_forward_norm"):
                    add("all-reduce", int(f"{gain}.weight" in part.trained), dims["hidden"] * width)
                for gain in ("q_norm", "k_norm"):
                    add(
                        "all-reduce", int(f"attention.{gain}.weight" in part.trained), dims["head"] * width
                    )  # fmt: skip
            elif part.kind == "vision":
                add("all-reduce", 2 + 2 * backward, patches)
                # rows of queries, keys and values that other ranks own: weight and bias
                for name in ("attention.qkv.weight", "attention.qkv.bias"):
                    if name in (named := dict(part.module.named_parameters())):
                        size = named[name].numel() * ranks * width
                        add("all-gather", 1, size)
                        add("reduce-scatter", int(name in part.trained), size)
            elif part.kind == "merger":
                add("all-reduce", 1, visual)
                add("all-reduce", backward, patches)
            elif part.kind == "embedding":
                add("all-reduce", 1, hidden)
                if any(other.kind == "decoder" for other in line):
                    add("all-gather", 1, hidden)  # of the gradient of the first layer's tokens
                add("all-reduce", max(mergers - 1, 0), visual)  # gradients of DeepStack's levels
            elif part.kind == "loss":
                add("all-gather", 1, hidden)
                add("all-reduce", int("norm.weight" in part.trained), dims["hidden"] * width)
                rows = self.runs.scored
                chunk = getattr(self.runs.loss, "chunk_tokens", None) or self.runs.chunk_tokens
                chunks = -(-rows // (chunk or max(rows, 1)))
                if chunks:
                    add("all-reduce", chunks, rows / chunks * 4)  # largest logit
                    add("all-reduce", chunks, rows / chunks * 8)  # sums of exponentials, targets
                    add("all-reduce", 1, rows * dims["hidden"] * width)
        times = self.micro_batches
        return [
            self._traffic("tensor", kind, calls * times, payload * times, ranks, 1, False)
            for kind, (calls, payload) in found.items()
        ]

    def _context(self, line: Sequence[Part]) -> list[Traffic]:
        layout = self.divided.layout
        if layout.context == 1:
            return []
        # a class, or a partial of one
        attend: Any = getattr(layout.context_attention, "func", layout.context_attention)
        found: dict[Kind, tuple[int, float]] = {}
        width = self.divided.precision.compute.itemsize
        for part in line:
            if part.kind != "decoder":
                continue
            attention = part.module.get_submodule("attention")
            widths = _out_features(attention, "q_proj"), _out_features(attention, "k_proj")
            backward = part.input_grad or bool(part.trained)
            for kind, numbers in attend.exchange(*widths, layout.context, backward):
                calls, payload = found.get(kind, (0, 0.0))
                found[kind] = calls + 1, payload + numbers * self.runs.tokens * width
        times = self.micro_batches
        return [
            self._traffic(
                "context", kind, calls * times, payload * times, layout.context, layout.tensor, False
            )
            for kind, (calls, payload) in found.items()
        ]  # fmt: skip

    def _experts(self, line: Sequence[Part]) -> list[Traffic]:
        """Of even routing: each rank is sent as much as it sends."""
        layout = self.divided.layout
        if layout.expert == 1:
            return []
        calls, payload = 0, 0.0
        for part in line:
            if (mixture := _mixture(part)) is None:
                continue
            passes = 2 if part.input_grad or part.trained else 1
            # rows go and come; before that, how many
            calls += 2 * passes + 1
            payload += 2 * passes * mixture.num_active * self._hidden() / layout.tensor
            payload += part.num_experts * 4
        calls, payload = calls * self.micro_batches, payload * self.micro_batches
        return [self._traffic("expert", "all-to-all", calls, payload, layout.expert, 1, False)]

    def _pipeline(self, line: Sequence[Part]) -> list[Traffic]:
        layout = self.divided.layout
        if layout.pipeline == 1:
            return []
        # each stage sends hidden states on and their gradients back, but for those at the ends
        kinds = {part.kind for part in line}
        ends = int("embedding" in kinds) + int("loss" in kinds)
        calls = self.micro_batches * (2 * layout.virtual_stages - ends)
        return [self._traffic(
            "pipeline", "send", calls, calls * self._hidden() / layout.tensor, 2,
            layout.world_size // layout.pipeline, True,
        )]  # fmt: skip


def _out_features(module: nn.Module, name: str) -> int:
    return int(getattr(module.get_submodule(name), "out_features", 0))


def _mixture(part: Part) -> MixtureOfExperts | None:
    found = dict(part.module.named_children()).get("feed_forward")
    return found if isinstance(found, MixtureOfExperts) else None
