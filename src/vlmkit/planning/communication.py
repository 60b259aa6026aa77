"""What ranks send each other in a step: calls, bytes and seconds, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
            *self._pipeline(),
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
        ranks = layout.shard * layout.context
        # of experts, ranks // expert hold one copy: a shorter ring for the same bytes
        numel = sum(part.numel for part in line if part.owns_weights)
        numel_trained = sum(
            n for part in line for name, n in part.trained.items()
            if part.owns_weights or not name.startswith("head.")
        )  # fmt: skip
        gathers = 2 * self.micro_batches if layout.zero == 3 else 1
        reduces = 1 if layout.zero == 1 else self.micro_batches
        found = []
        if ranks > 1:
            found = [
                self._traffic(
                    "shard", "all-gather", gathers * units,
                    gathers * numel * divided.used_bytes, ranks, stride, True,
                ),
                self._traffic(
                    "shard", "reduce-scatter", reduces * trained_units,
                    reduces * numel_trained * divided.reduced_bytes, ranks, stride, True,
                ),
            ]  # fmt: skip
        if layout.replicate > 1:
            found.append(self._traffic(
                "replicate", "all-reduce", trained_units,
                numel_trained * divided.reduced_bytes / ranks, layout.replicate,
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
                # tokens are gathered and scattered twice forward, and twice backward
                add("all-gather", 2 + 2 * backward, hidden)
                add("reduce-scatter", 2 + 2 * backward, hidden)
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
        layers = [part for part in line if part.kind == "decoder"]
        width = sum(2 * _kv_width(part) for part in layers)
        payload = width * self.runs.tokens * layout.context
        payload *= self.divided.precision.compute.itemsize * self.micro_batches
        calls, stride = len(layers) * self.micro_batches, layout.tensor
        return [
            self._traffic("context", "all-gather", calls, payload, layout.context, stride, False),
            self._traffic(
                "context", "reduce-scatter", calls, payload, layout.context, stride, False
            ),
        ]

    def _experts(self, line: Sequence[Part]) -> list[Traffic]:
        layout = self.divided.layout
        if layout.expert == 1:
            return []
        active = sum(getattr(_mixture(part), "num_active", 0) for part in line)
        layers = sum(_mixture(part) is not None for part in line) * self.micro_batches
        payload = 4 * active * self._hidden() * self.micro_batches
        ranks, stride = layout.expert, layout.tensor
        return [self._traffic("expert", "all-to-all", 4 * layers, payload, ranks, stride, False)]

    def _pipeline(self) -> list[Traffic]:
        layout = self.divided.layout
        if layout.pipeline == 1:
            return []
        calls = 2 * self.micro_batches * layout.virtual_stages
        return [self._traffic(
            "pipeline", "send", calls, calls * self._hidden() / layout.tensor, 2,
            layout.world_size // layout.pipeline, True,
        )]  # fmt: skip


def _kv_width(part: Part) -> int:
    projection = part.module.get_submodule("attention.k_proj")
    return int(getattr(projection, "out_features", 0))


def _mixture(part: Part) -> object | None:
    found = dict(part.module.named_children()).get("feed_forward")
    return found if hasattr(found, "num_active") else None
