"""The planner's prediction for a step, and what the step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from benchmarks.on_gpu.canvases import Pack
from benchmarks.on_gpu.sides import Recompute
from benchmarks.step.measure import peak_added
from omegaconf import DictConfig
from torch import nn

from vlmkit.build import build, build_model, compose_config, options_of
from vlmkit.device_memory import total_gib
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.weighting import TokenWeighting
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.planning.device import Device
from vlmkit.planning.micro_batch import MicroBatch
from vlmkit.planning.planner import Plan, Planner
from vlmkit.planning.state import Precision, moment_bytes
from vlmkit.training.meters.peak import peak_of
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.policy import TrainingPolicy

RECOMPUTE: tuple[Recompute, ...] = ((0, 0), (0, 1), (2, 1), (1, 1))
"""From the fastest to the one that takes least memory."""


def planned_device(device: torch.device) -> Device:
    """What the planner knows of this device, its memory as it is here."""
    known: dict[str, Device] = {
        built.name: built
        for name in options_of("gpu")
        if (built := build(compose_config(f"gpu={name}").gpu))
    }
    name, bf16 = "CPU", peak_of(device, torch.bfloat16).tflops
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for key, sheet in known.items():
            if key in name.split():
                return Device(**{**vars(sheet), "memory_gib": total_gib(device)})
    return Device(
        name=name, peak_tflops=bf16, memory_gib=total_gib(device), memory_bandwidth_gb_s=1.0,
        node_bandwidth_gb_s=1.0, network_bandwidth_gb_s=1.0, flash_attention=device.type == "cuda",
    )  # fmt: skip


def plan_step(
    config: DictConfig, packs: Sequence[Pack], device: Device, recompute: Recompute
) -> Plan:
    """Of a step of these packs on one device, in bfloat16."""
    model = build_model(config=config, device="meta", dtype=torch.bfloat16)
    assert isinstance(model, Qwen3VL)
    if (adapters := build(config.lora)) is not None:
        adapters(model)
    policy: TrainingPolicy = build(config.weight_update.policy)
    longest = max(packs, key=lambda pack: pack.batch.num_tokens)
    return Planner(
        model=model,
        micro=MicroBatch.of(longest.batch),
        rows_per_step=len(packs),
        rows_per_micro_batch=1,
        precision=Precision(weights=torch.bfloat16, autocast=False),
        moments=moment_bytes(model, policy, build(config.optim.optimizer), torch.bfloat16),
        loss=CrossEntropy(TokenWeighting(power=0.0)),
        device=device,
        recompute=recompute,
    ).plan(Layout(zero=0))


def fitting_plan(
    config: DictConfig, packs: Sequence[Pack], device: Device
) -> tuple[Plan, Recompute]:
    """The plan that fits with the least recomputation; that with the most where none does."""
    for recompute in RECOMPUTE:
        plan = plan_step(config, packs, device, recompute)
        if plan.fits:
            break
    return plan, recompute


def peak_of_step(
    step: Callable[[], None],
    model: nn.Module,
    moments: float,
    packs: Sequence[Pack],
    device: torch.device,
) -> float:
    """Bytes at the peak of a step, weights, moments and batch included."""
    before = float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0.0
    added = peak_added(step, device)
    if device.type == "cuda":
        return before + added
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights + moments + _batch_bytes(packs) + added


def _batch_bytes(packs: Sequence[Pack]) -> float:
    total = 0
    for pack in packs:
        holders = [pack.batch, pack.batch.vision]
        tensors = [x for h in holders if h for x in vars(h).values() if isinstance(x, torch.Tensor)]
        total += sum(x.numel() * x.element_size() for x in tensors)
    return float(total)
