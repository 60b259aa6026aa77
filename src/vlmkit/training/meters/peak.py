"""How many FLOPs a device could do: from its maker's data sheet, or measured."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

MEASURE_S = 0.15  # of repeated matmuls, after a warm-up of one


@dataclass(frozen=True, kw_only=True)
class Peak:
    """FLOP/s that MFU is a share of.

    Attributes:
        tflops: dense, 1e12 FLOP/s.
        source: where the number comes from.
        measured: whether it is what a matmul reached here, and not what the maker promises; a share of
            it says how near the step comes to plain matmuls, and compares with nothing else.
    """

    tflops: float
    source: str
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSheet:
    """Dense peaks of a GPU in 1e12 FLOP/s, with float32 accumulation and without sparsity.

    None: the unit does not exist.
    """

    names: str  # regular expression for the whole of torch.cuda.get_device_name, without the maker
    half: float  # float16 on tensor cores
    bf16: float | None
    tf32: float | None
    fp32: float
    source: str


# The sheets of Hopper, Blackwell and Ada print tensor peaks with sparsity: half of them stands here.
DATA_SHEETS = (
    DataSheet(
        names=r"A100-(SXM4|PCIE)-\d+GB|A100 \d+GB PCIe|A100-SXM-\d+GB",
        half=312, bf16=312, tf32=156, fp32=19.5,
        source="NVIDIA A100 Tensor Core GPU data sheet",
    ),
    DataSheet(
        names=r"H100 80GB HBM3|H100 SXM5.*|H800",
        half=989.4, bf16=989.4, tf32=494.7, fp32=66.9,
        source="NVIDIA H100 Tensor Core GPU data sheet, SXM",
    ),
    DataSheet(
        names=r"H100 PCIe",
        half=756.5, bf16=756.5, tf32=378, fp32=51,
        source="NVIDIA H100 Tensor Core GPU data sheet, PCIe",
    ),
    DataSheet(
        names=r"H100 NVL",
        half=835.5, bf16=835.5, tf32=417.5, fp32=60,
        source="NVIDIA H100 Tensor Core GPU data sheet, NVL",
    ),
    DataSheet(
        names=r"H200",
        half=989.5, bf16=989.5, tf32=494.5, fp32=67,
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM",
    ),
    DataSheet(
        names=r"H200 NVL",
        half=835.5, bf16=835.5, tf32=417.5, fp32=60,
        source="NVIDIA H200 Tensor Core GPU data sheet, NVL",
    ),
    DataSheet(
        names=r"B200",
        half=2250, bf16=2250, tf32=1100, fp32=75,
        source="NVIDIA Blackwell data sheet, HGX B200",
    ),
    DataSheet(
        names=r"GB200",
        half=2500, bf16=2500, tf32=1250, fp32=80,
        source="NVIDIA Blackwell data sheet, GB200",
    ),
    DataSheet(
        names=r"L40S",
        half=362.05, bf16=362.05, tf32=183, fp32=91.6,
        source="NVIDIA L40S data sheet",
    ),
    DataSheet(
        names=r"L40",
        half=181.05, bf16=181.05, tf32=90.5, fp32=90.5,
        source="NVIDIA L40 data sheet",
    ),
    DataSheet(
        names=r"L4",
        half=121, bf16=121, tf32=60, fp32=30.3,
        source="NVIDIA L4 data sheet",
    ),
    DataSheet(
        names=r"A10",
        half=125, bf16=125, tf32=62.5, fp32=31.2,
        source="NVIDIA A10 data sheet",
    ),
    DataSheet(
        names=r"A40",
        half=149.7, bf16=149.7, tf32=74.8, fp32=37.4,
        source="NVIDIA A40 data sheet",
    ),
    DataSheet(
        names=r"GeForce RTX 4090",
        half=165.2, bf16=165.2, tf32=82.6, fp32=82.6,
        source="NVIDIA Ada GPU architecture white paper, appendix A",
    ),
    DataSheet(
        names=r"GeForce RTX 3090",
        half=71, bf16=71, tf32=35.6, fp32=35.6,
        source="NVIDIA Ampere GA102 GPU architecture white paper, appendix A",
    ),
    DataSheet(
        names=r"V100-SXM2-\d+GB",
        half=125, bf16=None, tf32=None, fp32=15.7,
        source="NVIDIA V100 Tensor Core GPU data sheet, SXM2",
    ),
    DataSheet(
        names=r"T4",
        half=65, bf16=None, tf32=None, fp32=8.1,
        source="NVIDIA T4 data sheet",
    ),
)  # fmt: skip


def peak_of(device: torch.device, dtype: torch.dtype, peak_tflops: float | None = None) -> Peak:
    """The peak of one device.

    Matmuls in float32 use TF32 where torch is told that they may.

    Args:
        device: that trains.
        dtype: of matmuls: autocast's, or that of the weights.
        peak_tflops: what you know better.
    """
    if peak_tflops is not None:
        return Peak(tflops=peak_tflops, source="peak_tflops")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        allow_tf32 = torch.get_float32_matmul_precision() != "highest"
        if (known := peak_by_name(name, dtype, allow_tf32)) is not None:
            return known
    return measured_peak(device, dtype)


def peak_by_name(name: str, dtype: torch.dtype, allow_tf32: bool = False) -> Peak | None:
    """From the data sheet of a GPU, or None: slices of a GPU and variants have names of their own."""
    bare = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    sheet = next((sheet for sheet in DATA_SHEETS if re.fullmatch(sheet.names, bare)), None)
    if sheet is None:
        return None
    column, tflops = {
        torch.bfloat16: ("bf16", sheet.bf16),
        torch.float16: ("fp16", sheet.half),
        torch.float32: ("tf32", sheet.tf32) if allow_tf32 and sheet.tf32 else ("fp32", sheet.fp32),
    }.get(dtype, ("", None))
    return Peak(tflops=tflops, source=f"{sheet.source}, {column} dense") if tflops else None


def measured_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best of several matmuls; takes about 0.2 s."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best, end = float("inf"), 0.0
    while True:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if not end:
            end = (
                now + MEASURE_S
            )  # the first one warms up, but counts where it is all there is time for
        best = min(best, now - start)
        if now >= end:
            break
    what = str(dtype).removeprefix("torch.")
    threads = f" on {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return Peak(
        tflops=2 * side**3 / best / 1e12,
        source=f"measured: {side} x {side} matmul in {what} on {device.type}{threads}",
        measured=True,
    )
