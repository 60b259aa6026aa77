"""The processor of this machine as a device that can be planned for."""

from __future__ import annotations

import time

import torch

from vlmkit.device_memory import total_gib
from vlmkit.planning.device import Device
from vlmkit.training.meters.peak import peak_of

COPIED = 2**25
"""Bytes that show the bandwidth; more than caches hold would be slower, and take longer to find out."""


def host_device(dtype: torch.dtype) -> Device:
    """Peak and bandwidth measured here, in about 0.2 s; attention as the host runs it.

    Args:
        dtype: of matrix products.
    """
    cpu = torch.device("cpu")
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source).copy_(source)
    began = time.perf_counter()
    target.copy_(source)
    seconds = max(time.perf_counter() - began, 1e-6)
    return Device(
        name="CPU",
        peak_tflops=peak_of(cpu, dtype).tflops,
        memory_gib=total_gib(cpu),
        memory_bandwidth_gb_s=2 * COPIED / seconds / 1e9,
        node_bandwidth_gb_s=1.0,
        network_bandwidth_gb_s=1.0,
        flash_attention=False,
    )
