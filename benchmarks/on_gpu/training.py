"""A training step of a whole model: MFU, memory against the plan, waits for the device, transformers."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from benchmarks.on_gpu.bench import Bench, spread
from benchmarks.on_gpu.canvases import PUBLISHED_PIXELS, EmojiCanvases, described, packs
from benchmarks.on_gpu.ceilings import matmul_tflops, wall
from benchmarks.on_gpu.memory import fitting_plan, peak_of_step, planned_device
from benchmarks.on_gpu.scale import Training
from benchmarks.on_gpu.sides import (
    Recompute,
    Step,
    adapt,
    dress,
    new_model,
    our_step,
    published_tensors,
    their_step,
    transformers_model,
)
from benchmarks.step.measure import seconds

from vlmkit.build import build, compose_config
from vlmkit.training.compilation import BlockCompiler
from vlmkit.training.meters.flops import ModelFlops
from vlmkit.training.meters.peak import peak_of
from vlmkit.training.meters.work import work_of

GIB = 2**30
LOSS_TOLERANCE = 0.01
"""Of two bfloat16 models; random weights give a loss near the logarithm of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a way to run a step is judged by."""

    flops: float
    tokens: int
    peak_tflops: float
    at_once: float  # TFLOP/s of a matrix product, at this moment


def config_of(spec: Training, *more: str) -> Any:
    """The config of a run like the case."""
    adapters = "lora=default" if spec.lora else "lora=none"
    return compose_config(
        *spec.model,
        *PUBLISHED_PIXELS,
        "precision=bf16_true",
        "optim=adamw_bf16",
        "loss=per_token",
        adapters,
        *more,
    )


def train(bench: Bench, spec: Training) -> None:
    """Ours as written, ours compiled, transformers; goals are for the better of ours."""
    device, scale = bench.device, bench.scale
    config = config_of(spec)
    source = EmojiCanvases(scale.cells, scale.turns)
    rows = packs(config, spec.row_tokens, spec.packs, source)
    bench.note(described(rows))
    plan, recompute = fitting_plan(config, rows, planned_device(device))
    bench.note(_recomputed(recompute))

    model = new_model(config, device)
    weights = published_tensors(model)
    if (adapters := build(config.lora)) is not None:
        adapters(model)
    flops = sum(ModelFlops(model).of(work_of(pack.batch)).total for pack in rows)
    peak = peak_of(device, torch.bfloat16)
    figures = Figures(
        flops=flops,
        tokens=sum(pack.batch.num_tokens for pack in rows),
        peak_tflops=peak.tflops,
        at_once=matmul_tflops(device, scale.matmul),
    )
    bench.note(
        f"{flops / 1e12:.3g} TFLOP in a step by definition; MFU is of {peak.tflops:.4g} TFLOP/s "
        f"({peak.source}); a matrix product reaches {figures.at_once:.4g} now"
    )
    step: Step | None = our_step(model, rows, config, device)
    dress(model, recompute, None)
    best: dict[str, float] = {}
    ours = loss = 0.0
    with bench.attempt("vlmkit"):
        assert step is not None
        step()
        loss = step.loss()
        memory = peak_of_step(step, model, plan.memory.lines.get("moments", 0.0), rows, device)
        _compare_memory(bench, plan.memory.total, memory)
        best["as written"] = _measure(bench, "vlmkit", step, figures, memory)
    with bench.attempt("a step without waiting for the device"):
        assert step is not None
        _no_waits(bench, step, "vlmkit")
    if spec.compiled and bench.share_left > 0.35:
        with bench.attempt("vlmkit, compile=blocks"):
            assert step is not None
            dress(model, recompute, BlockCompiler(scale.backend))
            bench.note(f"compilation: {wall(step, device, 2):.1f} s, two steps ({scale.backend})")
            memory = peak_of_step(step, model, plan.memory.lines.get("moments", 0.0), rows, device)
            best["compiled"] = _measure(
                bench, "vlmkit, compile=blocks", step, figures, memory, until=0.25
            )
    elif spec.compiled:
        bench.note("left out for lack of time: compile=blocks")
    if best:
        ours = min(best.values())
        if spec.least_mfu is not None:
            bench.goal("MFU", flops / ours / 1e12 / peak.tflops, spec.least_mfu)
        if spec.least_tflops is not None:
            bench.goal("TFLOP/s", flops / ours / 1e12, spec.least_tflops)
    sizes = compose_config(*spec.model)
    del step, model
    bench.free()
    _beside_transformers(bench, spec, weights, recompute, figures, ours, loss, rows, sizes, config)


def _beside_transformers(
    bench: Bench, spec: Training, weights: Any, recompute: Recompute, figures: Figures, ours: float,
    loss: float, rows: Any, sizes: Any, config: Any,
) -> None:  # fmt: skip
    from vlmkit.build import build_model

    if importlib.util.find_spec("transformers") is None:
        bench.note("left out, not installed: transformers")
        return
    meta = build_model(config=sizes, device="meta", dtype=torch.bfloat16)
    for attention, package in (("sdpa", None), ("flash_attention_2", "flash_attn")):
        what = f"transformers, {attention}"
        if package and importlib.util.find_spec(package) is None:
            bench.note(f"left out, not installed: {what}")
            continue
        if bench.share_left < 0.1:
            bench.note(f"left out for lack of time: {what}")
            continue
        done = False
        for checkpointing in dict.fromkeys((any(recompute), True)):
            label = what + (", blocks recomputed" if checkpointing else "")
            with bench.attempt(label, is_ours=False):
                theirs = transformers_model(meta, weights, attention, bench.device)  # type: ignore[arg-type]
                if spec.lora:
                    adapt(theirs, config)
                if checkpointing:
                    theirs.gradient_checkpointing_enable({"use_reentrant": False})
                step = their_step(theirs, rows, config, bench.device)
                step()
                their_loss = step.loss()
                far = abs(their_loss - loss) / max(abs(loss), 1e-9)
                if ours and not far <= LOSS_TOLERANCE:
                    bench.fail(label, f"its loss is {their_loss:.5g}, vlmkit's {loss:.5g}")
                memory = (
                    peak_of_step(step, theirs, 0.0, rows, bench.device) if bench.on_gpu else None
                )
                spent = _measure(bench, label, step, figures, memory, against=ours)
                bench.found.setdefault("speed", {})[label] = spent / ours if ours else None
                bench.note(f"{label}: loss {their_loss:.5g}, vlmkit {loss:.5g}: {far:.1e} apart")
                if attention == "sdpa" and bench.on_gpu:
                    _count_waits(bench, step, label)
                done = True
            theirs = step = None
            bench.free()
            if done:
                break


def _measure(
    bench: Bench, what: str, step: Step, figures: Figures, memory: float | None,
    against: float | None = None, until: float = 0.15,
) -> float:  # fmt: skip
    """Time passes and optimiser of each round; returns the median of their sum."""
    passes: list[float] = []
    updates: list[float] = []
    step()
    for i in range(bench.scale.rounds):
        if i >= 2 and bench.share_left < until:
            break
        passes.append(seconds(step.passes, bench.device))
        updates.append(seconds(step.update, bench.device))
    both = [a + b for a, b in zip(passes, updates, strict=True)]
    middle = median(both)
    rate = figures.flops / middle / 1e12
    bench.row(
        **{
            "what": what,
            "step, s": spread(both),
            "of it optimiser, s": median(updates),
            "tokens/s": figures.tokens / middle,
            "TFLOP/s": rate,
            "MFU": bench.share(rate / figures.peak_tflops),
            "of a matrix product": bench.share(rate / figures.at_once),
            "peak, GiB": memory / GIB if memory is not None else "",
            "vlmkit's speed": f"{middle / against:.2f} x" if against else "",
        }
    )
    return middle


def _compare_memory(bench: Bench, predicted: float, measured: float) -> None:
    bench.found["memory"] = {"predicted": predicted, "measured": measured}
    bench.note(
        f"peak memory: planned {predicted / GIB:.4g} GiB, measured {measured / GIB:.4g} GiB "
        f"({predicted / measured - 1:+.1%})"
    )


def _no_waits(bench: Bench, step: Step, what: str) -> None:
    """A step during which any wait of the host for the device is an error."""
    if not bench.on_gpu:
        bench.note("left out, needs CUDA: a step under torch.cuda.set_sync_debug_mode('error')")
        return
    torch.cuda.synchronize(bench.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError:
        torch.cuda.set_sync_debug_mode("default")
        step.optimizer.zero_grad(set_to_none=True)
        _count_waits(bench, step, what)
        raise
    finally:
        torch.cuda.set_sync_debug_mode("default")
    bench.note("a step under torch.cuda.set_sync_debug_mode('error'): no wait")


def _count_waits(bench: Bench, step: Step, what: str) -> None:
    """How often the host waits for the device in a step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    places = dict.fromkeys(f"{w.filename}:{w.lineno}" for w in waits)
    where = f", first at {', '.join(list(places)[:3])}" if places else ""
    bench.note(f"{what}: the host waits {len(waits)} times in a step{where}")


def _recomputed(recompute: Recompute) -> str:
    decoder, vision = recompute
    if not any(recompute):
        return "nothing is recomputed: the plan fits"
    parts = [
        f"every {'' if every == 1 else f'{every}nd '}{what}"
        for every, what in ((decoder, "decoder layer"), (vision, "vision block"))
        if every
    ]
    return f"recomputed, since the plan does not fit otherwise: {', '.join(parts)}"
