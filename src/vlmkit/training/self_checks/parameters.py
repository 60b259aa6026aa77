"""What is frozen stays, what is trained moves, and each parameter is one or the other."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from vlmkit.errors import ConfigError, listed
from vlmkit.training.policy import components_of
from vlmkit.training.self_checks.base import CheckContext, CheckResult, Status

_CHUNK = 1 << 22  # elements at a time: 64-bit copies of a whole tensor would not fit


class ComponentPartition:
    """Each parameter belongs to one component, and a component trains as a whole or not at all.

    Where there are adapters (LoRA), a component may be frozen in part; then it is only named.
    """

    meaning = "some weights train although their component is frozen, or the other way round"

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        try:
            components = components_of(context.model)
        except ConfigError as error:
            return CheckResult(status=Status.FAILED, measured=1.0, tolerance=0.0, detail=str(error))
        trains: defaultdict[str, set[bool]] = defaultdict(set)
        first_owner: dict[int, str] = {}
        problems = []
        for name, parameter in context.model.named_parameters(remove_duplicate=False):
            if name not in components:  # another name of a parameter that was seen
                problems.append(f"{name} is {first_owner[id(parameter)]} under another name")
                continue
            first_owner[id(parameter)] = name
            trains[components[name]].add(parameter.requires_grad)
        mixed = [f"{part} is frozen in part" for part, both in trains.items() if len(both) > 1]
        has_adapters = any(".lora_" in name for name in components)
        problems += [] if has_adapters else mixed
        frozen = [part for part, both in trains.items() if both == {False}]
        notes = [f"{len(trains)} components", f"frozen: {', '.join(frozen) or 'none'}", *mixed]
        return CheckResult(
            status=Status.FAILED if problems else Status.PASSED,
            measured=float(len(problems)),
            tolerance=0.0,
            detail=listed(problems, 3) or "; ".join(notes),
        )


class FrozenUnchanged:
    """Frozen weights are bit for bit what they were at the start.

    All are hashed at the start and at the end, and in between as many as `bytes_per_run` allows, taking
    turns.

    Args:
        bytes_per_run: weights that are hashed in one run; one tensor at least.
    """

    meaning = (
        "something writes into frozen weights: an optimiser that holds them, weight decay, an average of "
        "weights, or tied names"
    )

    def __init__(self, bytes_per_run: int = 1 << 28) -> None:
        self.bytes_per_run = bytes_per_run
        self._hashes: dict[str, int] | None = None
        self._next = 0

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        frozen = {
            name: parameter
            for name, parameter in context.model.named_parameters()
            if not parameter.requires_grad
        }
        if self._hashes is None:
            self._hashes = content_hashes(frozen)
            if not frozen:
                return CheckResult(status=Status.SKIPPED, detail="nothing is frozen")
            return CheckResult(status=Status.PASSED, detail=f"hashed {len(frozen)} frozen tensors")
        if not self._hashes:
            return CheckResult(status=Status.SKIPPED, detail="nothing is frozen")
        names = list(self._hashes)
        chosen = names if context.is_last else self._turn(names, frozen)
        absent = [name for name in chosen if name not in frozen]
        now = content_hashes({name: frozen[name] for name in chosen if name in frozen})
        changed = [name for name, value in now.items() if value != self._hashes[name]]
        problems = [f"{name} has changed" for name in changed]
        problems += [f"{name} is no longer frozen" for name in absent]
        return CheckResult(
            status=Status.FAILED if problems else Status.PASSED,
            measured=float(len(problems)),
            tolerance=0.0,
            detail=listed(problems, 3) or f"{len(chosen)} of {len(names)} frozen tensors",
        )

    def _turn(self, names: list[str], frozen: dict[str, nn.Parameter]) -> list[str]:
        chosen: list[str] = []
        size = 0
        while len(chosen) < len(names) and (not chosen or size < self.bytes_per_run):
            name = names[(self._next + len(chosen)) % len(names)]
            chosen.append(name)
            if name in frozen:
                size += frozen[name].numel() * frozen[name].element_size()
        self._next = (self._next + len(chosen)) % len(names)
        return chosen


class TrainedMoves:
    """Every trained tensor has changed since the start, to finite values.

    A tensor that has not is a notice, no failure: a run without pictures leaves parts of the encoder
    alone, and in bfloat16 an update smaller than half a unit of rounding is lost. It fails where none has
    changed at all, or a value is not finite. Only tensors that have not moved are looked at again.
    """

    meaning = "the optimiser does not hold these weights, their gradient is not finite, or the rate is zero"

    def __init__(self) -> None:
        self._waiting: dict[str, int] | None = None
        self._start, self._count = 0, 0

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        trained = {n: p for n, p in context.model.named_parameters() if p.requires_grad}
        if self._waiting is None:
            self._waiting, self._start = content_hashes(trained), context.step
            self._count = len(trained)
            return CheckResult(
                status=Status.PASSED, detail=f"hashed {len(trained)} trained tensors"
            )
        if context.step == self._start:
            return CheckResult(status=Status.PASSED, detail="no step was taken")
        waiting = {name: trained[name] for name in self._waiting if name in trained}
        now = content_hashes(waiting)
        moved = [name for name, value in now.items() if value != self._waiting[name]]
        infinite = [name for name in moved if not bool(_local(trained[name]).isfinite().all())]
        still = [name for name in waiting if name not in moved]
        self._waiting = {name: self._waiting[name] for name in still}
        status = Status.NOTICE if still else Status.PASSED
        problems = [f"{name} has not moved" for name in still]
        none_moved = len(still) == self._count and context.is_last  # the first step may be left out
        if infinite or none_moved:
            status = Status.FAILED
            problems = [f"{name} is not finite" for name in infinite] or [
                "no trained tensor has moved"
            ]
        return CheckResult(
            status=status,
            measured=float(len(problems)),
            tolerance=0.0,
            detail=listed(problems, 3) or f"all {self._count} trained tensors have moved",
        )


@torch.no_grad()
def content_hashes(tensors: dict[str, nn.Parameter]) -> dict[str, int]:
    """A 64-bit hash of the bits of each tensor, made where it lies; of a sharded one, this rank's part.

    The sum, modulo 2 ** 64, of each element's bits times an odd number that depends on its place. Integer
    sums do not depend on their order, and a change of one element always shows.
    """
    if not tensors:
        return {}
    sums = [_content_sum(_local(tensor)) for tensor in tensors.values()]
    values = torch.stack([value.to(sums[0].device) for value in sums]).tolist()  # one wait for all
    return dict(zip(tensors, values, strict=True))


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a DTensor, or the tensor."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local is not None else tensor


def _content_sum(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[
        tensor.element_size()
    ]
    bits = tensor.detach().contiguous().flatten().view(integers)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), _CHUNK):
        piece = bits[start : start + _CHUNK]
        place = torch.arange(start, start + len(piece), device=tensor.device)
        total += (piece.long() * (place * -7046029254386353131 | 1)).sum()
    return total
