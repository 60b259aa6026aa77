"""Attention and loss kernels against alternatives: time, memory, error against float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.scale import Heads
from benchmarks.step.measure import peak_added, seconds
from torch import Tensor
from torch.nn import functional as F

from vlmkit.attention.flash import FlashAttention
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.attention.varlen import VarlenAttention
from vlmkit.batch import Segments
from vlmkit.errors import UserError
from vlmkit.losses.chunks import chunk_tokens_for
from vlmkit.losses.liger import LigerKernel
from vlmkit.losses.linear_cross_entropy import TorchKernel, weighted_linear_cross_entropy

ATTENTION_TOLERANCE = 0.02
"""Of outputs and gradients in bfloat16, relative to float32; plain bfloat16 is between 1e-3 and 1e-2."""
LOSS_TOLERANCE = 0.02
DENSE_MASK = 16384
"""Tokens above which a mask over the whole pack is not tried."""

OURS = ("varlen", "sdpa per segment", "flash-attn")

Run = Callable[[Sequence[Tensor]], Tensor]
"""Queries, keys and values, each (tokens, heads, head_dim) -> (tokens, heads, head_dim)."""


def attention(bench: Bench) -> None:
    """Each back end of vlmkit, and what else one might take, forward and backward."""
    for name, heads in bench.scale.heads.items():
        generator = torch.Generator(bench.device).manual_seed(0)

        def drawn(count: int, heads: Heads = heads, generator: Any = generator) -> Tensor:
            shape = (sum(heads.lengths), count, heads.dim)
            return torch.randn(shape, generator=generator, device=bench.device).bfloat16()

        inputs = [drawn(n) for n in (heads.heads, heads.kv_heads, heads.kv_heads)]
        gradient = drawn(heads.heads)
        segments = Segments.from_lengths(heads.lengths).to(bench.device)
        exact: list[Tensor] = []
        with bench.attempt(f"{name}: float32 reference"):
            exact = _results(_reference(segments, heads), inputs, gradient, torch.float32)
        for what, make in _ways(heads, segments, bench).items():
            label = f"{name}: {what}"
            if bench.share_left < 0.05:
                bench.note(f"left out for lack of time: {label}")
                continue
            with bench.attempt(label, is_ours=what in OURS):
                try:
                    run = make()
                except UserError as error:
                    bench.note(f"left out: {label}: {str(error).splitlines()[0][:160]}")
                    continue
                _measure_attention(bench, label, heads, run, inputs, gradient, exact)
        del exact
        bench.free()


def _measure_attention(
    bench: Bench, label: str, heads: Heads, run: Run, inputs: Sequence[Tensor], gradient: Tensor,
    exact: Sequence[Tensor],
) -> None:  # fmt: skip
    found = _results(run, inputs, gradient, torch.bfloat16)
    errors = [_error(a, b) for a, b in zip(found, exact, strict=True)] if exact else []
    del found
    leaves = [x.clone().requires_grad_() for x in inputs]
    repeats = bench.scale.repeats

    def both() -> None:
        for _ in range(repeats):
            torch.autograd.grad(run(leaves), leaves, gradient)

    spent = [seconds(both, bench.device) / repeats for _ in range(bench.scale.rounds + 1)][1:]
    bench.row(
        **{
            "what": label,
            "ms, forward and backward": 1000 * median(spent),
            "TFLOP/s": heads.flops / max(median(spent), 1e-9) / 1e12,
            "added, MiB": peak_added(both, bench.device) / 2**20,
            "output error": f"{errors[0]:.1e}" if errors else "",
            "worst gradient error": f"{max(errors[1:]):.1e}" if errors else "",
        }
    )
    if errors and not max(errors) <= ATTENTION_TOLERANCE:
        bench.fail(label, f"errors {[f'{e:.1e}' for e in errors]} of output, dq, dk, dv")


def _ways(heads: Heads, segments: Segments, bench: Bench) -> dict[str, Callable[[], Run]]:
    def back_end(make: Callable[[], Any]) -> Callable[[], Run]:
        def made() -> Run:
            run = _ours(make(), segments, heads)
            shape = (16, heads.heads, heads.dim)  # asks the back end whether it can
            probe = torch.zeros(shape, device=bench.device, dtype=torch.bfloat16)
            few = Segments.from_lengths([16]).to(bench.device)
            make()(probe, probe, probe, segments=few, causal=heads.causal)
            return run

        return made

    ways = {
        "varlen": back_end(VarlenAttention),
        "sdpa per segment": back_end(SDPAAttention),
        "flash-attn": back_end(FlashAttention),
        "sdpa, padded with a mask": lambda: _padded(heads, bench.device),
    }
    if sum(heads.lengths) <= DENSE_MASK and len(heads.lengths) > 1:
        ways["sdpa, one mask over the pack"] = lambda: _dense_mask(heads, bench.device)
    ways["flex_attention, compiled"] = lambda: _flex(heads, bench)
    return ways


def _ours(back_end: Any, segments: Segments, heads: Heads) -> Run:
    return lambda qkv: back_end(*qkv, segments=segments, causal=heads.causal)


def _reference(segments: Segments, heads: Heads) -> Run:
    """With keys and values repeated: in float32, grouped heads would take all scores at once on a GPU."""
    return lambda qkv: SDPAAttention()(
        qkv[0], *_repeated(qkv[1:], heads, 1), segments=segments, causal=heads.causal
    )


def _repeated(keys_and_values: Sequence[Tensor], heads: Heads, dim: int) -> list[Tensor]:
    return [x.repeat_interleave(heads.heads // heads.kv_heads, dim=dim) for x in keys_and_values]


def _padded(heads: Heads, device: torch.device) -> Run:
    """One sample a row, as a padded batch has it; filling and emptying the rows counts."""
    count, width = len(heads.lengths), max(heads.lengths)
    lengths = torch.tensor(heads.lengths, device=device)
    columns = torch.arange(width, device=device)
    real = columns < lengths[:, None]  # (count, width)
    place = real.flatten().nonzero().squeeze(1)
    mask = real[:, None, None, :].expand(count, 1, width, width)
    if heads.causal:
        mask = mask & (columns[:, None] >= columns)
    mask = mask | ~real[:, None, :, None]  # a row of padding that sees nothing would give NaN

    def run(qkv: Sequence[Tensor]) -> Tensor:
        rows = []
        for x in qkv:
            empty = x.new_zeros(count * width, *x.shape[1:])
            rows.append(
                empty.index_copy(0, place, x).view(count, width, *x.shape[1:]).transpose(1, 2)
            )
        # repeated, as transformers does where there is a mask: kernels with masks know no grouped heads
        out = F.scaled_dot_product_attention(
            rows[0], *_repeated(rows[1:], heads, 1), attn_mask=mask
        )
        return out.transpose(1, 2).flatten(0, 1)[place]

    return run


def _dense_mask(heads: Heads, device: torch.device) -> Run:
    sample = torch.arange(len(heads.lengths), device=device).repeat_interleave(
        torch.tensor(heads.lengths, device=device)
    )
    mask = sample[:, None] == sample
    if heads.causal:
        mask = mask.tril()

    def run(qkv: Sequence[Tensor]) -> Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in qkv)
        key, value = _repeated((key, value), heads, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out[0].transpose(0, 1)

    return run


def _flex(heads: Heads, bench: Bench) -> Run:
    if not bench.on_gpu:
        raise UserError("needs CUDA: its backward pass does not run on a CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    total = sum(heads.lengths)
    sample = torch.arange(len(heads.lengths), device=bench.device).repeat_interleave(
        torch.tensor(heads.lengths, device=bench.device)
    )

    def sees(batch: Any, head: Any, q: Any, k: Any) -> Any:
        same = sample[q] == sample[k]
        return same & (q >= k) if heads.causal else same

    block_mask = create_block_mask(sees, None, None, total, total, device=str(bench.device))
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def run(qkv: Sequence[Tensor]) -> Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in qkv)
        out: Tensor = compiled(
            query, key, value, block_mask=block_mask, enable_gqa=heads.heads != heads.kv_heads
        )
        return out[0].transpose(0, 1)

    return run


def _results(
    run: Run, inputs: Sequence[Tensor], gradient: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Output, then the gradients of queries, keys and values."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = run(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(dtype))]


def _error(found: Tensor, exact: Tensor) -> float:
    difference = (found.float() - exact.float()).norm() / exact.float().norm().clamp(min=1e-30)
    return float(difference)


LossRun = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rows (rows, dim), head (vocab, dim), targets (rows,) -> mean negative log-likelihood, ()."""


def losses(bench: Bench) -> None:
    """Head and cross-entropy of one pack, forward and backward."""
    rows, dim, vocab = bench.scale.loss_rows
    generator = torch.Generator(bench.device).manual_seed(0)
    hidden = torch.randn(rows, dim, generator=generator, device=bench.device).bfloat16()
    head = torch.randn(vocab, dim, generator=generator, device=bench.device) * dim**-0.5
    head = head.bfloat16()
    targets = torch.randint(vocab, (rows,), generator=generator, device=bench.device)
    bench.note(f"{rows:,} scored tokens, width {dim:,}, a vocabulary of {vocab:,}, bfloat16")
    exact: list[Tensor] = []
    with bench.attempt("float32 reference"):
        exact = _loss_results(_plain, hidden.float(), head.float(), targets)
    plain: float | None = None
    for what, make in _loss_ways(bench).items():
        if bench.share_left < 0.05:
            bench.note(f"left out for lack of time: {what}")
            continue
        with bench.attempt(what, is_ours="vlmkit" in what):
            try:
                run = make()
            except UserError as error:
                bench.note(f"left out: {what}: {str(error).splitlines()[0][:160]}")
                continue
            middle = _measure_loss(bench, what, run, (hidden, head, targets), exact, plain)
            plain = plain or middle


def _measure_loss(
    bench: Bench, what: str, run: LossRun, inputs: tuple[Tensor, Tensor, Tensor],
    exact: Sequence[Tensor], plain: float | None,
) -> float:  # fmt: skip
    found = _loss_results(run, *inputs)
    errors = [_error(a, b) for a, b in zip(found, exact, strict=True)] if exact else []
    del found
    hidden, head = (x.clone().requires_grad_() for x in inputs[:2])

    def both() -> None:
        torch.autograd.grad(run(hidden, head, inputs[2]), (hidden, head))

    spent = [seconds(both, bench.device) for _ in range(bench.scale.rounds + 1)][1:]
    middle = max(median(spent), 1e-9)
    flops = 6.0 * hidden.numel() * len(head)
    bench.row(
        **{
            "what": what,
            "ms, forward and backward": 1000 * middle,
            "TFLOP/s": flops / middle / 1e12,
            "added, MiB": peak_added(both, bench.device) / 2**20,
            "worst error": f"{max(errors):.1e}" if errors else "",
            "speed beside full logits": f"{plain / middle:.2f} x" if plain else "1 x",
        }
    )
    if errors and not max(errors) <= LOSS_TOLERANCE:
        bench.fail(what, f"errors {[f'{e:.1e}' for e in errors]} of loss, d hidden, d head")
    return middle


def _loss_ways(bench: Bench) -> dict[str, Callable[[], LossRun]]:
    def chunked(kernel: Any) -> LossRun:
        def run(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
            weights = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device)
            loss, _, _ = weighted_linear_cross_entropy(
                hidden, head, targets, weights, kernel=kernel, z_coefficient=0.0,
                chunk_tokens=chunk_tokens_for(hidden.device, len(head)),
            )  # fmt: skip
            return loss

        return run

    def liger() -> LossRun:
        if not bench.on_gpu:
            raise UserError("needs CUDA")
        return chunked(LigerKernel())

    def compiled() -> LossRun:
        if not bench.on_gpu:
            raise UserError("needs a compiler that a toy does not wait for")
        run: LossRun = torch.compile(_plain)
        return run

    def native() -> LossRun:
        function = getattr(F, "linear_cross_entropy", None)
        if function is None:
            raise UserError(f"torch {torch.__version__} has no F.linear_cross_entropy")
        return lambda hidden, head, targets: function(hidden, head, targets)

    return {
        "full logits, float32 softmax": lambda: _plain,
        "vlmkit, torch chunks": lambda: chunked(TorchKernel()),
        "vlmkit, liger": liger,
        "full logits, compiled": compiled,
        "torch's linear_cross_entropy": native,
    }


def _plain(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """As transformers computes it."""
    return F.cross_entropy(F.linear(hidden, head).float(), targets)


def _loss_results(run: LossRun, hidden: Tensor, head: Tensor, targets: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (hidden, head)]
    loss = run(*leaves, targets)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]
