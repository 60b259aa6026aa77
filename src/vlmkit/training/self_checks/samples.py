"""Which of the run's samples the checks look at."""

from __future__ import annotations

from collections.abc import Callable

from vlmkit.data.order.samples import Samples
from vlmkit.data.processor import Example, Plan
from vlmkit.data.video import PlannedVideo


class ShortestFirst:
    """The shortest of the run's first samples, with a picture and a video among them where there are any.

    A function of the run's data alone: all ranks choose the same, and the order of samples is not touched.

    Args:
        count: samples to take.
        look_at: samples to choose from; only their headers are read.
        max_tokens: of all that are taken together.
        max_patches: likewise; patches are what pictures and videos cost.
    """

    def __init__(
        self, count: int = 3, look_at: int = 24, max_tokens: int = 4096, max_patches: int = 8192
    ) -> None:
        if not 1 <= count <= look_at:
            raise ValueError(f"count is {count} and look_at {look_at}; set 1 <= count <= look_at")
        self.count, self.look_at = count, look_at
        self.max_tokens, self.max_patches = max_tokens, max_patches

    def __call__(self, samples: Samples) -> tuple[Example, ...]:
        """Choose and decode; samples that cannot be used are passed over. May be empty."""
        plans: dict[int, Plan] = {}
        for index in range(self.look_at):
            plan = samples.plan(index)
            if isinstance(plan, Plan):
                plans[index] = plan
        by_length = sorted(plans, key=lambda index: (plans[index].num_tokens, index))
        chosen: dict[int, Example] = {}
        tokens, patches = self.max_tokens, self.max_patches
        for wanted, at_most in ((_has_video, 1), (_has_picture, 2), (_any, self.count)):
            for index in by_length:
                plan = plans[index]
                if len(chosen) >= min(at_most, self.count):
                    break
                fits = plan.num_tokens <= tokens and plan.num_patches <= patches
                if index in chosen or not fits or not wanted(plan):
                    continue
                example = samples.load(plan, index)
                if isinstance(example, Example):
                    chosen[index] = example
                    tokens, patches = tokens - plan.num_tokens, patches - plan.num_patches
        return tuple(chosen[index] for index in sorted(chosen))


def _has_video(plan: Plan) -> bool:
    return any(isinstance(media, PlannedVideo) for media in plan.media)


def _has_picture(plan: Plan) -> bool:
    return any(not isinstance(media, PlannedVideo) for media in plan.media)


def _any(plan: Plan) -> bool:
    return True


Choose = Callable[[Samples], tuple[Example, ...]]
"""Chooses what the checks look at; `ShortestFirst`, or a class of yours."""
