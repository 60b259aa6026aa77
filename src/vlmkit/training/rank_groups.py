"""Which ranks train on what, as a training step sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RankGroups:
    """Ranks that take a step together.

    Attributes:
        sample_rank: which share of the samples of a step this rank trains on.
        num_sample_ranks: how many shares there are.
        token_rank: which share of the tokens this rank computes; ranks that draw random numbers alike have
            the same one.
        averaged_over: ranks by whose number gradients are divided when they are exchanged.
        samples: group of the ranks that have one of the shares of samples each; None: all ranks.
        parts: groups over which a rank has only a part of its samples' sums: ranks that share tokens, and
            stages of a pipeline.
        stages: group of the ranks with other layers of the same model; none or one.
        share_samples: whether several ranks are given the same samples and compute a part of them each.
    """

    sample_rank: int
    num_sample_ranks: int
    token_rank: int
    averaged_over: int
    samples: dist.ProcessGroup | None = None
    parts: tuple[dist.ProcessGroup, ...] = ()
    stages: tuple[dist.ProcessGroup, ...] = ()
    share_samples: bool = False

    @classmethod
    def of(cls, trainer: L.Trainer) -> RankGroups:
        """Those of the trainer's strategy; copies of the model where it has none."""
        copies = cls.of_copies(trainer.global_rank, trainer.world_size)
        found: RankGroups = getattr(trainer.strategy, "ranks", copies)
        return found

    @classmethod
    def of_copies(cls, rank: int, world_size: int) -> RankGroups:
        """Each rank has a copy of the model and samples of its own."""
        return cls(
            sample_rank=rank,
            num_sample_ranks=world_size,
            token_rank=rank,
            averaged_over=world_size,
        )

    def sum_over_samples(self, value: Tensor) -> Tensor:
        """Sum of what is known of whole samples, such as how many tokens of them are scored."""
        return _all_reduced(value, self.samples) if self.num_sample_ranks > 1 else value

    def sum_over_parts(self, value: Tensor) -> Tensor:
        """Sum of what each of the ranks that share samples has computed of them."""
        for group in self.parts:
            value = _all_reduced(value, group)
        return value

    def sum(self, value: Tensor) -> Tensor:
        """Sum of what ranks have computed, over the whole step."""
        return self.sum_over_samples(self.sum_over_parts(value))


def _all_reduced(value: Tensor, group: Any) -> Tensor:
    summed = value.clone()
    dist.all_reduce(summed, group=group)
    return summed
