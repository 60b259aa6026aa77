"""A device for tests."""

from vlmkit.planning.device import Device

CPU = Device(
    name="test",
    peak_tflops=0.1,
    memory_gib=4.0,
    memory_bandwidth_gb_s=10.0,
    node_bandwidth_gb_s=1.0,
    network_bandwidth_gb_s=0.1,
    flash_attention=False,
)
