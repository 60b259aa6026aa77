"""A small model on the CPU in float32 against every way to run it here: logits, loss, gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.canvases import PUBLISHED_PIXELS, EmojiCanvases, packs
from benchmarks.on_gpu.sides import dress
from torch import Tensor

from vlmkit.batch import VLMBatch
from vlmkit.build import build, build_model, compose_config
from vlmkit.errors import UserError
from vlmkit.losses.cross_entropy import CrossEntropy, scored_rows
from vlmkit.losses.weighting import TokenWeighting
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.compilation import BlockCompiler

FLOAT32 = {"logits": 1e-4, "loss": 1e-5, "gradient": 1e-3}
TIMES = 3.0
"""How much further from float32 a bfloat16 kernel may be than plain bfloat16 on the CPU."""
FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Way:
    """How to run the model."""

    dtype: torch.dtype
    attention: str
    kernel: str = "torch"
    compiled: bool = False
    recomputed: bool = False

    def __str__(self) -> str:
        """For the table."""
        extras = [f"loss {self.kernel}"] if self.kernel != "torch" else []
        extras += ["compile=blocks"] if self.compiled else []
        extras += ["recompute=blocks"] if self.recomputed else []
        return ", ".join([str(self.dtype).removeprefix("torch."), self.attention, *extras])


PLAIN = Way(dtype=torch.float32, attention="sdpa")
HALF = replace(PLAIN, dtype=torch.bfloat16)
WAYS = (
    PLAIN,
    HALF,
    replace(HALF, attention="varlen"),
    replace(HALF, attention="flash"),
    replace(HALF, attention="auto", kernel="liger"),
    replace(HALF, attention="auto", compiled=True),
    replace(HALF, attention="auto", recomputed=True),
)


@dataclass(frozen=True)
class Outcome:
    """On the CPU, float32."""

    logits: Tensor  # (scored_tokens, vocab)
    loss: Tensor
    gradient: Mapping[str, Tensor]

    def errors(self, exact: Outcome) -> dict[str, float]:
        """Norms of differences, relative."""
        total = difference = 0.0
        for name, right in exact.gradient.items():
            total += float(right.norm()) ** 2
            difference += float((self.gradient[name] - right).norm()) ** 2
        return {
            "logits": float((self.logits - exact.logits).norm() / exact.logits.norm()),
            "loss": float((self.loss - exact.loss).abs() / exact.loss.abs()),
            "gradient": (difference / total) ** 0.5,
        }


def correctness(bench: Bench) -> None:
    """Dense and mixture."""
    for name, overrides in bench.scale.small.items():
        config = compose_config(*overrides, *PUBLISHED_PIXELS)
        source = EmojiCanvases((2, 5), 3, seed=1)
        (pack,) = packs(config, bench.scale.small_tokens, 1, source)
        torch.manual_seed(0)
        weights = build_model(config=config).state_dict()
        cpu = torch.device("cpu")
        exact = _outcome(overrides, weights, pack.batch, PLAIN, cpu, bench)
        rough = _outcome(overrides, weights, pack.batch, HALF, cpu, bench).errors(exact)
        bench.row(what=f"{name}: CPU, {HALF}", **{k: f"{v:.1e}" for k, v in rough.items()})
        allowed = {
            torch.float32: FLOAT32,
            torch.bfloat16: {k: TIMES * v + FLOOR for k, v in rough.items()},
        }
        for way in WAYS:
            if way.compiled and bench.share_left < 0.3:
                bench.note(f"left out for lack of time: {name}: {way}")
                continue
            label = f"{name}: {bench.device.type}, {way}"
            with bench.attempt(label):
                try:
                    found = _outcome(overrides, weights, pack.batch, way, bench.device, bench)
                except UserError as error:
                    bench.note(f"left out: {label}: {str(error).splitlines()[0][:160]}")
                    continue
                errors = found.errors(exact)
                bench.row(what=label, **{k: f"{v:.1e}" for k, v in errors.items()})
                limits = allowed[way.dtype]
                if wrong := [k for k, v in errors.items() if not v <= limits[k]]:
                    bench.fail(
                        label,
                        "; ".join(f"{k} {errors[k]:.1e}, allowed {limits[k]:.1e}" for k in wrong),
                    )


def _outcome(
    overrides: tuple[str, ...],
    weights: Mapping[str, Tensor],
    batch: VLMBatch,
    way: Way,
    device: torch.device,
    bench: Bench,
) -> Outcome:
    config = compose_config(*overrides, f"attention={way.attention}", f"loss/kernel={way.kernel}")
    model = build_model(config=config, device="meta")
    assert isinstance(model, Qwen3VL)
    model.to_empty(device=device)
    model.load_state_dict({name: value.to(device) for name, value in weights.items()})
    model.to(way.dtype)
    compiler = BlockCompiler(bench.scale.backend) if way.compiled else None
    dress(model, (1, 1) if way.recomputed else (0, 0), compiler)
    objective = CrossEntropy(TokenWeighting(power=0.0), kernel=build(config.loss.kernel))

    def both(hidden: Tensor, head: Tensor, given: VLMBatch) -> Any:
        logits = scored_rows(hidden, given).detach() @ head.detach().T
        return objective(hidden, head, given), logits

    result, logits = model.train()(batch.to(device), read_out=both).read_out
    loss = result.numerator / result.denominator
    loss.backward()
    gradient = {
        name: parameter.grad.float().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Outcome(logits.float().cpu(), loss.detach().float().cpu(), gradient)
