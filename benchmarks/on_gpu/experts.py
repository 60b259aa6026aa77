"""Decoder layers of a mixture of experts, forward and backward, without the rest of the model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.on_gpu.bench import Bench, spread
from benchmarks.on_gpu.ceilings import matmul_tflops, wall
from benchmarks.on_gpu.sides import dress, published_tensors, transformers_model
from benchmarks.step.measure import peak_added
from torch import Tensor, nn

from vlmkit.batch import Segments
from vlmkit.build import build_model, compose_config
from vlmkit.initialization import materialize
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.position.mrope import Rotary
from vlmkit.training.blocks import decoder_layers
from vlmkit.training.compilation import BlockCompiler
from vlmkit.training.meters.flops import ModelFlops
from vlmkit.training.meters.peak import peak_of
from vlmkit.training.meters.work import Work

LEAST_MFU = 0.35
TOLERANCE = 0.03
"""Relative difference of two bfloat16 outputs; a router's near-tie may send a token elsewhere."""


class Group:
    """Layers on fixed hidden states, and the backward pass of a fixed gradient.

    Args:
        layers: one after the other.
        call: runs one.
        hidden: what comes in.
        gradient: of what goes out.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        call: Callable[[nn.Module, Tensor], Tensor],
        hidden: Tensor,
        gradient: Tensor,
    ) -> None:
        self.layers, self.call = layers, call
        self.hidden, self.gradient = hidden.requires_grad_(), gradient

    def forward(self) -> Tensor:
        """Through all layers."""
        x = self.hidden
        for layer in self.layers:
            x = self.call(layer, x)
        return x

    def __call__(self) -> None:
        """Forward and backward; gradients are dropped."""
        self.forward().backward(self.gradient)
        self.hidden.grad = None
        for layer in self.layers:
            layer.zero_grad(set_to_none=True)


def experts(bench: Bench) -> None:
    """vlmkit's layers as written and compiled, then transformers' around the same weights."""
    device, scale = bench.device, bench.scale
    config = compose_config(*scale.experts)
    model = build_model(config=config, device="meta", dtype=torch.bfloat16)
    assert isinstance(model, Qwen3VL)
    count, length = scale.segments
    work = Work(tokens=count * length, causal_pairs=count * length**2 / 2)
    flops = _of_layers(model, work)
    layers = decoder_layers(model)
    torch.manual_seed(0)
    for layer in layers:
        materialize(layer, device)
        layer.reset_parameters()  # type: ignore[operator]
    model.position.to(device)
    hidden, gradient = (
        torch.randn(1, count * length, model.decoder.hidden_dim, device=device).bfloat16()
        for _ in range(2)
    )
    ids = torch.arange(length, device=device).repeat(count).expand(3, 1, -1)
    rotary = model.position(ids, torch.bfloat16)
    segments = Segments.from_lengths([length] * count).to(device)
    peak = peak_of(device, torch.bfloat16).tflops
    at_once = matmul_tflops(device, scale.matmul)
    parameters = sum(p.numel() for layer in layers for p in layer.parameters())
    bench.note(
        f"{len(layers)} layers of {config.size.num_experts} experts, "
        f"{config.size.num_active_experts} active, {parameters:,} parameters; "
        f"{count} sequences of {length} tokens; {flops / 1e12:.3g} TFLOP by definition, "
        f"forward and backward; the optimiser is left out"
    )

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = layer(x, rotary, segments)[0]
        return out

    def measure(what: str, group: Group, against: float | None = None) -> float:
        spent = bench.timed(group, scale.rounds, warm=1, until=0.2)
        middle = sorted(spent)[len(spent) // 2]
        rate = flops / middle / 1e12
        bench.row(
            **{
                "what": what,
                "step, s": spread(spent),
                "TFLOP/s": rate,
                "MFU": bench.share(rate / peak),
                "of a matrix product": bench.share(rate / at_once),
                "added, GiB": peak_added(group, device) / 2**30,
                "vlmkit's speed": f"{middle / against:.2f} x" if against else "",
            }
        )
        return middle

    found: list[float] = []
    group = Group(layers, call, hidden, gradient)
    ours: Tensor | None = None
    with bench.attempt("vlmkit"):
        group()
        with torch.no_grad():
            ours = group.forward()
        found.append(measure("vlmkit", group))
    if bench.share_left > 0.4:
        with bench.attempt("vlmkit, compile=blocks"):
            BlockCompiler(scale.backend)(model)
            bench.note(f"compilation: {wall(group, device, 2):.1f} s, two steps ({scale.backend})")
            found.append(measure("vlmkit, compile=blocks", group))
        dress(model, (0, 0), None)
    if found:
        bench.goal("MFU", flops / min(found) / 1e12 / peak, LEAST_MFU)
    del group
    bench.free()
    if importlib.util.find_spec("transformers") is None:
        bench.note("left out, not installed: transformers")
        return
    with bench.attempt("transformers, sdpa, grouped_mm", is_ours=False):
        theirs = _their_group(model, rotary, hidden, gradient, (count, length), device)
        with torch.no_grad():
            out = theirs.forward().flatten(0, 1)
        if ours is not None:
            far = float((out.float() - ours[0].float()).norm() / ours.float().norm())
            bench.note(f"outputs of both differ by {far:.1e}")
            if not far <= TOLERANCE:
                bench.fail("transformers", f"outputs differ by {far:.1e}")
        spent = measure("transformers, sdpa, grouped_mm", theirs, min(found, default=0.0))
        bench.found["speed"] = {"transformers": spent / min(found)} if found else {}


def _of_layers(model: Qwen3VL, work: Work) -> float:
    flops = ModelFlops(model).of(work)
    names = ("decoder", "router", "experts")
    return sum(flops.forward[name] + flops.backward[name] for name in names)


def _their_group(
    model: Qwen3VL,
    rotary: Rotary,
    hidden: Tensor,
    gradient: Tensor,
    shape: tuple[int, int],
    device: torch.device,
) -> Group:
    weights = {name: x for name, x in published_tensors(model).items() if not x.is_meta}
    theirs: Any = transformers_model(model, weights, "sdpa", device)
    layers = list(theirs.model.language_model.layers)
    angles = tuple(part.view(*shape, -1) for part in rotary)

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        out = layer(x, position_embeddings=angles, attention_mask=None)
        return out[0] if isinstance(out, tuple) else out

    return Group(
        layers,
        call,
        hidden.detach().view(*shape, -1).clone(),
        gradient.view(*shape, -1),
    )
