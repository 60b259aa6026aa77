"""How much memory a device has, and how much of it is free."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

GIB = 2**30
CGROUPS = [  # limit and use of the container, versions 2 and 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
]


def free_gib(device: torch.device) -> float:
    """Free memory of a device, in GiB; on the host no more than the container allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    free = psutil.virtual_memory().available
    for limit_file, used_file in CGROUPS:
        if (limit := _limit(limit_file)) is not None:
            free = min(free, limit - int(used_file.read_text()))
    return max(free, 0) / GIB


def total_gib(device: torch.device) -> float:
    """Memory of a device, in GiB, in use or not; on the host no more than the container allows."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    total = psutil.virtual_memory().total
    limits = [limit for file, _ in CGROUPS if (limit := _limit(file)) is not None]
    return min([total, *limits]) / GIB


def _limit(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None
