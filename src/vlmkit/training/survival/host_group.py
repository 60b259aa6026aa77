"""Small values exchanged between ranks without touching the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class HostGroup:
    """All ranks, over gloo: nothing waits for kernels that are under way. One rank needs no network.

    All ranks make it at the same place, and call it equally often.
    """

    def __init__(self) -> None:
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if self.world_size > 1 else 0
        self._group: Any = dist.new_group(backend="gloo") if self.world_size > 1 else None

    def max(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self._group is None:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, dist.ReduceOp.MAX, self._group)
        return int(shared)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank; they must be picklable."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, self._group)
        return values
