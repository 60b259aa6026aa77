"""Where the time of a loader process goes: each stage timed without the stages inside it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from vlmkit.batch import StepBatch, VLMBatch
from vlmkit.data.datamodule import TrainingSteps
from vlmkit.data.order.samples import Samples
from vlmkit.data.order.steps import StepPlanner
from vlmkit.data.rows import Rows

STAGES = {  # name -> what runs in it
    "read records": ["benchmarks.photos.PhotoRows.__getitem__"],
    "read headers": ["vlmkit.data.media.ImageFile.size", "vlmkit.data.video.VideoTransform.plan"],
    "read files, decode": ["vlmkit.data.media.ImageFile.open", "vlmkit.data.video.PlannedVideo._frames"],
    "resize": ["vlmkit.data.image.resize", "vlmkit.data.video.resize"],
    "patches": ["vlmkit.data.image.ImageTransform.patches", "vlmkit.data.video.PlannedVideo.patches"],
    "template": ["vlmkit.data.template.InstructTemplate.render"],
    "tokenise": ["vlmkit.data.processor.Processor._tokenize_text"],
    "plan, rest": ["vlmkit.data.order.steps.FixedSamples.rows", "vlmkit.data.order.samples.Samples.plan"],
    "pack": ["vlmkit.data.order.steps.pack_all"],
    "collate": ["vlmkit.data.rows.collate"],
    "memory": ["vlmkit.data.datamodule.empty_patches"],
}  # fmt: skip


class Clock:
    """Adds up time by stage; a stage that calls another one stands still meanwhile."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running = ["rest"]
        self._since = time.process_time()

    def switch(self, to: str | None) -> None:
        """Begin a stage, or end the one that runs."""
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now
        if to is None:
            self._running.pop()
        else:
            self._running.append(to)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that counts for a stage."""

        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            self.switch(stage)
            try:
                made = function(*arguments, **named)
                # a generator runs when it is asked, so it is asked here
                return iter(list(made)) if isinstance(made, Iterator) else made
            finally:
                self.switch(None)

        return run


@contextmanager
def timed_stages(clock: Clock) -> Iterator[None]:
    """Time the stages while the context lasts."""
    with ExitStack() as stack:
        for stage, targets in STAGES.items():
            for target in targets:
                owner, _, name = target.rpartition(".")
                function = getattr(_found(owner), name)
                stack.enter_context(patch(target, clock.timed(stage, function)))
        yield


def _found(path: str) -> Any:
    """A module or class by its dotted path."""
    from importlib import import_module

    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


def stage_shares(
    samples: Samples, planner: StepPlanner, rows: Rows, num_steps: int
) -> tuple[dict[str, float], float]:
    """Share of each stage in the time per step, and samples per second of one process."""
    steps = TrainingSteps(samples, planner, rows)
    tickets = list(islice(planner.tickets(samples, planner.start()), num_steps + 1))
    steps[tickets[0]]  # warm
    clock = Clock()
    batches: list[StepBatch] = []
    with patch("vlmkit.data.datamodule.empty_patches", touched_memory), timed_stages(clock):
        for ticket in tickets[1:]:
            clock.switch("rest")
            batch = steps[ticket]
            clock.switch(None)
            batches.append(batch)
    del clock.seconds["rest"]
    seconds = {stage: clock.seconds[stage] for stage in STAGES}
    seconds["between processes"] = num_steps * _transport_seconds(batches[0])
    total = sum(seconds.values())
    count = sum(sum(batch.samples.values()) for batch in batches)
    return {stage: spent / total for stage, spent in seconds.items()}, count / total


def touched_memory(count: int, patch_dim: int) -> Tensor:
    """Memory of a batch as a worker gets it, touched so that the system hands it out now."""
    storage = torch.UntypedStorage._new_shared(max(4 * count * patch_dim, 1))
    memory = torch.empty(0).set_(storage, 0, (count, patch_dim), (patch_dim, 1))
    return memory.fill_(0)


def _transport_seconds(batch: StepBatch, count: int = 6) -> float:
    """Seconds that a worker takes to hand a step over: all tensors but the patches go to shared memory."""
    micro_batches = [shared_patches(micro) for micro in batch.micro_batches]
    seconds = 0.0
    for _ in range(count):
        again = deepcopy(batch)
        fresh = tuple(
            replace(micro, vision=given.vision)
            for micro, given in zip(again.micro_batches, micro_batches, strict=True)
        )
        start = time.process_time()
        ForkingPickler.dumps(replace(again, micro_batches=fresh))
        seconds += time.process_time() - start
    return seconds / count


def shared_patches(micro: VLMBatch) -> VLMBatch:
    """With patches where a worker writes them."""
    if micro.vision is None:
        return micro
    patches = micro.vision.patches.clone().share_memory_()
    return replace(micro, vision=replace(micro.vision, patches=patches))
