"""Peaks come from the right line of a data sheet, or are measured and say so."""

import time

import pytest
import torch

from vlmkit.training.meters.peak import DATA_SHEETS, peak_by_name, peak_of


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, False, 312),
        ("A100-PCIE-40GB", torch.float32, True, 156),
        ("NVIDIA A100 80GB PCIe", torch.float32, False, 19.5),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989.4),
        ("NVIDIA H100 PCIe", torch.bfloat16, False, 756.5),
        ("NVIDIA H200", torch.bfloat16, False, 989.5),
        ("NVIDIA B200", torch.bfloat16, False, 2250),
        ("NVIDIA L40S", torch.float16, False, 362.05),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, False, 165.2),
        ("Tesla V100-SXM2-32GB", torch.float16, False, 125),
    ],
)
def test_known_gpus(name, dtype, tf32, tflops):
    peak = peak_by_name(name, dtype, tf32)
    assert peak.tflops == tflops
    assert not peak.measured
    assert "NVIDIA" in peak.source


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16),  # a seventh of one
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16),
        ("NVIDIA A10G", torch.bfloat16),
        ("Tesla V100-SXM2-32GB", torch.bfloat16),  # has no such unit
        ("NVIDIA H200", torch.float64),
        ("Some GPU", torch.bfloat16),
    ],
)
def test_what_is_not_known_is_not_guessed(name, dtype):
    assert peak_by_name(name, dtype) is None


def test_half_precision_is_at_least_twice_tf32_is_at_least_fp32():
    for sheet in DATA_SHEETS:
        assert sheet.half >= 1.97 * (sheet.tf32 or sheet.fp32)
        assert (sheet.tf32 or sheet.fp32) >= sheet.fp32


def test_a_cpu_is_measured_quickly_and_says_so():
    start = time.perf_counter()
    peak = peak_of(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - start < 2  # measured 0.2 s; CI machines stall
    assert peak.measured
    assert "measured" in peak.source
    assert 1e-3 < peak.tflops < 100


def test_what_you_know_wins():
    peak = peak_of(torch.device("cpu"), torch.float32, peak_tflops=7.0)
    assert (peak.tflops, peak.measured) == (7.0, False)
