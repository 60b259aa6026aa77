"""The most that one rank holds at a time, part by part through a forward and a backward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from vlmkit.planning.parts import Part
from vlmkit.planning.runs import PartRuns
from vlmkit.planning.state import Precision
from vlmkit.planning.trace import PartTrace
from vlmkit.training.parallel.layout import Layout

Bytes = Mapping[str, float]


PHASES = {
    "patches": "vision encoder",
    "vision": "vision encoder",
    "merger": "mergers",
    "embedding": "embedding",
    "decoder": "decoder",
    "loss": "head and loss",
}
"""What runs, by the kind of part."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Bytes at the peak of a phase.

    Attributes:
        total: of everything.
        working: of what the part at work makes and drops again, such as a chunk of logits.
    """

    total: float
    working: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at the moment when it holds most.

    Attributes:
        at: which moment.
        lines: bytes by what they are.
        parameters: numbers of the rank, whether gathered or its own part.
        phases: by what runs, the most that is held meanwhile, and how much of it is only for that.
    """

    at: str
    lines: Bytes
    parameters: float
    phases: Mapping[str, Phase]

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.lines.values())


@dataclass(frozen=True, kw_only=True)
class Divided:
    """How far layout and precision divide weights, gradients and moments."""

    layout: Layout
    precision: Precision
    is_mesh: bool

    def parts(self, part: Part, name: str | None = None) -> int:
        """Ranks that share a parameter of a part; None: a dense one."""
        if not self.is_mesh:
            return 1
        is_expert = name in part.expert_names
        return self.layout.expert_shard if is_expert else self.layout.shard * self.layout.context

    def own(self, part: Part) -> float:
        """Parameters of a part that the rank keeps."""
        if not part.owns_weights:
            return part.dense - _tied(part)
        experts = self.layout.expert_shard if self.is_mesh else 1
        return part.dense / self.parts(part) + part.experts / experts

    @property
    def used_bytes(self) -> int:
        """Of a gathered weight."""
        return self.precision.compute.itemsize if self.is_mesh else self.precision.weight_bytes

    @property
    def reduced_bytes(self) -> int:
        """Of a gradient while it is summed up over ranks."""
        return 4 if self.precision.autocast else self.precision.weight_bytes


def _tied(part: Part) -> int:
    head: nn.Module = part.module.get_submodule("head")
    return sum(p.numel() for p in head.parameters())


class Timeline:
    """Walks through the parts of one rank.

    Args:
        line: parts of the rank's pipeline stage, in their order.
        runs: traces them.
        divided: what of the state the rank keeps.
        moments: bytes of optimiser state per number, by the name of a parameter.
        recomputed: names of the parts whose activations are computed again.
        micro_batches: of a step.
        in_flight: micro-batches whose forward pass is done when the first backward pass begins.
    """

    def __init__(
        self,
        line: Sequence[Part],
        runs: PartRuns,
        divided: Divided,
        moments: Mapping[str, float],
        recomputed: frozenset[str],
        micro_batches: int,
        in_flight: int = 1,
    ) -> None:
        self.line, self.runs, self.divided = line, runs, divided
        self.micro_batches, self.in_flight = micro_batches, in_flight
        known: dict[tuple[object, ...], PartTrace] = {}  # equal parts are asked for once
        self.traces = []
        for part in line:
            key = (part.signature, part.input_grad, part.name in recomputed)
            if key not in known:
                known[key] = self._trace(part, part.name in recomputed)
            self.traces.append(known[key])
        self.moments = sum(
            n / divided.parts(part, name) * moments.get(f"{part.prefix}.{name}", 0.0)
            for part in line
            for name, n in part.trained.items()
        )
        self.own = [divided.own(part) for part in line]
        self.weights = sum(self.own) * divided.precision.weight_bytes
        self._best: tuple[float, str, dict[str, float]] = (-1.0, "", {})
        self._phases: dict[str, Phase] = {}

    def memory(self) -> Memory:
        """The moment of the peak."""
        state = {"weights": self.weights, "moments": self.moments}
        held: defaultdict[str, float] = defaultdict(float)
        held["batch"] = self.runs.batch_bytes * self.micro_batches
        held["rotary"] = self.runs.shared_bytes
        visual = sum(part.kind == "merger" for part in self.line)
        outputs = visual * self.runs.visual * self.runs.dims["hidden"]
        held["visual tokens"] = outputs * self.runs.tracer.activations.itemsize
        earlier = self.in_flight - 1
        for part, trace in zip(self.line, self.traces, strict=True):
            held[f"activations: {part.kind}"] += earlier * (trace.kept - trace.cast)
        gradients = self._gradients()
        whole_gradients = sum(gradients)
        held["gradients"] = whole_gradients if self.micro_batches > 1 else 0.0
        held["gathered weights"] = self._gathered_throughout()
        if self.divided.is_mesh and self.divided.layout.zero == 1 and self.micro_batches > 1:
            held["gradients"] += self._numel_trained() * self.divided.reduced_bytes
        if not self.divided.is_mesh and self.divided.layout.world_size > 1:
            held["buckets"] = whole_gradients
        for i, (part, trace) in enumerate(zip(self.line, self.traces, strict=True)):
            at = f"forward pass of {part.name}"
            self._see(at, PHASES[part.kind], state, held, trace.forward_peak, self._units(i, 1))
            held[f"activations: {part.kind}"] += trace.kept - trace.cast
            held["cast weights"] += trace.cast
        held["visual tokens"] = 0.0
        for i in reversed(range(len(self.line))):
            part, trace = self.line[i], self.traces[i]
            working = max(trace.backward_peak - trace.kept, 0)
            reduced = 0.0
            if self.divided.is_mesh and self.divided.precision.autocast:
                reduced = sum(part.trained.values()) * self.divided.reduced_bytes
            at = f"backward pass of {part.name}"
            self._see(at, PHASES[part.kind], state, held, working + reduced, self._units(i, -1))
            held[f"activations: {part.kind}"] -= trace.kept - trace.cast
            if self.micro_batches == 1:
                held["gradients"] += gradients[i]
        held["gathered weights"] = held["cast weights"] = 0.0
        self._see("optimiser step", "optimiser step", state, held, 0.0, 0.0)
        _, at, lines = self._best
        return Memory(at=at, lines=lines, parameters=sum(self.own), phases=self._phases)

    def _see(
        self, at: str, phase: str, state: Bytes, held: Bytes, working: float, gathered: float
    ) -> None:
        lines = {**state, **held, "working": working}
        lines["gathered weights"] = lines.get("gathered weights", 0.0) + gathered
        total = sum(lines.values())
        if phase not in self._phases or total > self._phases[phase].total:
            self._phases[phase] = Phase(total=total, working=working)
        if total > self._best[0]:
            self._best = total, at, {name: value for name, value in lines.items() if value}

    def _gradients(self) -> list[float]:
        """Bytes that stay of each part's gradients; those of a tied head count with the head."""
        found = []
        has_tied = any(not part.owns_weights for part in self.line)
        for part in self.line:
            if part.kind == "embedding" and has_tied:
                found.append(0.0)
                continue
            found.append(
                self.divided.precision.weight_bytes
                * sum(n / self.divided.parts(part, name) for name, n in part.trained.items())
            )
        return found

    def _numel_trained(self) -> float:
        return sum(n for part in self.line if part.owns_weights for n in part.trained.values())

    def _gathered_throughout(self) -> float:
        """Whole weights that stay from the forward to the backward pass."""
        if not self.divided.is_mesh or self.divided.layout.zero == 3:
            return 0.0
        return sum(part.numel for part in self.line if part.owns_weights) * self.divided.used_bytes

    def _units(self, i: int, direction: int) -> float:
        """Bytes of weights that are whole while part `i` runs: its own, the next one's, the root's."""
        if not self.divided.is_mesh or self.divided.layout.zero != 3:
            return 0.0
        root = sum(p.numel for p in self.line if not p.is_unit and p.owns_weights)
        now = self.line[i].numel if self.line[i].is_unit else 0
        following = i + direction
        inside = 0 <= following < len(self.line) and self.line[following].is_unit
        ahead = self.line[following].numel if inside else 0
        return (root + now + ahead) * self.divided.used_bytes

    def _trace(self, part: Part, recompute: bool) -> PartTrace:
        trace = self.runs.trace(part, recompute)
        tensor = self.divided.layout.tensor
        # between matrices tokens are divided: norms, residuals, and what is kept for recomputation
        if tensor == 1 or part.kind != "decoder":
            return trace
        norm = part.module.attention_norm
        kept = self.runs.trace_norm(norm, part.input_grad).kept * 2  # type: ignore[arg-type]
        spared = int((trace.kept if recompute else kept) * (1 - 1 / tensor))
        return PartTrace(
            kept=trace.kept - spared,
            forward_peak=trace.forward_peak,
            backward_peak=trace.backward_peak - spared,
            gradients=trace.gradients,
            cast=trace.cast,
        )
