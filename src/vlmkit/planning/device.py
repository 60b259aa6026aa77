"""What a plan knows of a kind of device. Numbers: conf/gpu."""

from __future__ import annotations

from dataclasses import dataclass

from vlmkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, and how it is linked to others.

    Attributes:
        name: as printed.
        peak_tflops: dense bfloat16, 1e12 FLOP/s.
        memory_gib: of the device.
        memory_bandwidth_gb_s: 1e9 bytes per second.
        node_bandwidth_gb_s: to devices of the same node, one direction, 1e9 bytes per second.
        network_bandwidth_gb_s: to devices of other nodes, one direction, of one device.
        devices_per_node: linked by `node_bandwidth_gb_s`.
        achievable: assumption: share of the peak that matrix products of training reach.
        usable: assumption: share of the memory that tensors may take; the rest is for the allocator's
            gaps, the driver and communication buffers.
        overlap: assumption: share of the compute time behind which gathers of weights and reductions of
            gradients can hide.
        latency_us: assumption: of one collective.
        price_per_hour: assumption: of one device, in the currency of your choice; None prints no cost.
        flash_attention: whether attention keeps queries, keys, values and output only. False: traced as
            the host's back end runs it.
    """

    name: str
    peak_tflops: float
    memory_gib: float
    memory_bandwidth_gb_s: float
    node_bandwidth_gb_s: float
    network_bandwidth_gb_s: float
    devices_per_node: int = 8
    achievable: float = 0.6
    usable: float = 0.92
    overlap: float = 0.8
    latency_us: float = 20.0
    price_per_hour: float | None = None
    flash_attention: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no size or no share.

        Raises:
            ConfigError: names the field.
        """
        for name in ("achievable", "usable", "overlap"):
            if not 0 <= getattr(self, name) <= 1 or (name != "overlap" and not getattr(self, name)):
                raise ConfigError(f"gpu.{name} is {getattr(self, name)}; it is a share, 0 to 1")
        for name in ("peak_tflops", "memory_gib", "devices_per_node"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"gpu.{name} is {getattr(self, name)}; it must be positive")

    @property
    def usable_bytes(self) -> float:
        """Bytes that tensors may take."""
        return self.memory_gib * 2**30 * self.usable

    def bandwidth(self, ranks: int, stride: int, is_ring: bool) -> float:
        """Bytes per second that one rank of a group sends and receives.

        A ring through several nodes leaves each by the ports of all its members there; what every rank
        sends to every other, or to one, goes through its own port.

        Args:
            ranks: of the group.
            stride: between its neighbours, in ranks.
            is_ring: whether data go round.
        """
        if ranks * stride <= self.devices_per_node:
            return 1e9 * self.node_bandwidth_gb_s
        ports = max(self.devices_per_node // stride, 1) if is_ring else 1
        return 1e9 * min(self.node_bandwidth_gb_s, ports * self.network_bandwidth_gb_s)
