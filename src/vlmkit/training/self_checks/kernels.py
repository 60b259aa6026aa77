"""Kernels against float64 on the device and in the precision of the run.

A kernel may be as far from float64 as a few times what the plainest code in the same precision is
(`margin`), plus one unit of rounding. So the tolerance follows the precision and the device, TF32 included.
The worst token counts, and the tensor as a whole: a wrong row shows in the one, a wrong factor in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.batch import Segments, VLMBatch
from vlmkit.language.moe import Experts, grouped_matmul
from vlmkit.training.self_checks.base import (
    SHARED,
    CheckContext,
    CheckResult,
    Status,
    within,
    worst_error,
)

LENGTHS = (5, 1, 64, 130, 31)
"""Of random segments: shorter and longer than the tiles of kernels, and one exactly as long."""


class _Worst:
    """The error that goes furthest beyond what it is allowed."""

    def __init__(self, margin: float, eps: float) -> None:
        self.margin, self.eps = margin, eps
        self.share, self.error, self.allowed, self.what = -1.0, 0.0, inf, "nothing"

    def compare(self, what: str, found: Tensor, plain: Tensor, exact: Tensor) -> None:
        """A tensor (tokens, ...), what plain code in the same precision gives, and what is right."""
        self.add(what, worst_error(found, exact), worst_error(plain, exact))
        self.add(f"{what}, as a whole", _total(found, exact), _total(plain, exact))

    def add(self, what: str, error: float, plain_error: float) -> None:
        """An error, and that of plain code in the same precision."""
        # sums in float32 depend on their order, even where the plain code happens to be exact
        allowed = self.margin * max(plain_error, torch.finfo(torch.float32).eps) + self.eps
        share = error / allowed if isfinite(error) and isfinite(allowed) else inf
        if share > self.share:
            self.share, self.error, self.allowed, self.what = share, error, allowed, what

    def result(self, detail: str) -> CheckResult:
        """Of all that were added."""
        return within(self.error, self.allowed, f"{detail}; worst: {self.what}")


class AttentionKernels:
    """Every attention back end of the model, forward and backward, causal and full, on random segments.

    Args:
        margin: see the module.
    """

    meaning = (
        "this attention kernel computes something else on this device; try attention=sdpa, and another "
        "version of the kernel's package or driver"
    )

    def __init__(self, margin: float = 8.0) -> None:
        self.margin = margin

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        if context.shares_samples:
            return CheckResult(status=Status.SKIPPED, detail=SHARED)
        kinds, unknown = _attention_kinds(context.model)
        if not kinds:
            return CheckResult(
                status=Status.SKIPPED, detail="no module of the model has an attention"
            )
        dtype = context.compute_dtype
        worst = _Worst(self.margin, torch.finfo(dtype).eps)
        segments = Segments.from_lengths(LENGTHS).to(context.device)
        generator = context.generator()
        for (name, heads, kv_heads, head_dim), kernel in kinds.items():
            shapes = (
                (heads, head_dim),
                (kv_heads, head_dim),
                (kv_heads, head_dim),
                (heads, head_dim),
            )
            query, key, value, cotangent = (
                torch.randn(sum(LENGTHS), *shape, generator=generator).to(context.device, dtype)
                for shape in shapes
            )
            for causal in (True, False):
                label = f"{name}, {heads}/{kv_heads} heads of {head_dim}, {'causal' if causal else 'full'}"

                def call(
                    q: Tensor, k: Tensor, v: Tensor, run: Any = kernel, c: bool = causal
                ) -> Tensor:
                    return run(q, k, v, segments=segments, causal=c)

                def plain(q: Tensor, k: Tensor, v: Tensor, c: bool = causal) -> Tensor:
                    return _plain_attention(q, k, v, LENGTHS, c)

                inputs = (query, key, value)
                exact = _with_gradients(plain, inputs, cotangent, torch.float64)
                found = _with_gradients(call, inputs, cotangent, dtype)
                rough = _with_gradients(plain, inputs, cotangent, dtype)
                parts = ("output", "d query", "d key", "d value")
                for part, f, r, e in zip(parts, found, rough, exact, strict=True):
                    worst.compare(f"{label}, {part}", f, r, e)
        names = ", ".join(sorted({name for name, *_ in kinds}))
        detail = f"{names} in {str(dtype).removeprefix('torch.')}"
        return worst.result(detail + (f"; not tested: {', '.join(unknown)}" if unknown else ""))


class GroupedMatmul:
    """The grouped product of the experts against one product per expert, forward and backward.

    Args:
        margin: see the module.
        kernel: what the experts use.
    """

    meaning = "tokens are multiplied with the weights of another expert, or of none"
    ROWS = (3, 0, 64, 17, 1, 0)  # of each group

    def __init__(
        self,
        margin: float = 6.0,
        kernel: Callable[[Tensor, Tensor, Tensor], Tensor] = grouped_matmul,
    ) -> None:
        self.margin, self.kernel = margin, kernel

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        experts = [m for m in context.model.modules() if isinstance(m, Experts)]
        if not experts:
            return CheckResult(status=Status.SKIPPED, detail="the model has no experts")
        dtype, device, generator = context.compute_dtype, context.device, context.generator()
        worst = _Worst(self.margin, torch.finfo(dtype).eps)
        ends = torch.tensor(self.ROWS).cumsum(0).to(device, torch.int32)
        shapes = {tuple(p.shape[1:]) for m in experts for p in (m.gate_up_proj, m.down_proj)}
        for k, n in sorted(shapes):
            x, weight, cotangent = (
                torch.randn(*shape, generator=generator).to(device, dtype)
                for shape in ((sum(self.ROWS), k), (len(self.ROWS), k, n), (sum(self.ROWS), n))
            )

            def call(a: Tensor, b: Tensor) -> Tensor:
                return self.kernel(a, b, ends)

            def loop(a: Tensor, b: Tensor) -> Tensor:
                parts = a.split(self.ROWS)
                return torch.cat([part @ own for part, own in zip(parts, b, strict=True)])

            exact = _with_gradients(loop, (x, weight), cotangent, torch.float64)
            found = _with_gradients(call, (x, weight), cotangent, dtype)
            rough = _with_gradients(loop, (x, weight), cotangent, dtype)
            for part, f, r, e in zip(
                ("output", "d tokens", "d weight"), found, rough, exact, strict=True
            ):
                worst.compare(f"{k} x {n}, {part}", f, r, e)
        return worst.result(f"{len(self.ROWS)} groups in {str(dtype).removeprefix('torch.')}")


class LossKernel:
    """The loss and its gradients against cross-entropy in float64, over the whole vocabulary.

    Weights of tokens are read off the gradient: where the loss is sum of weight * nll, the gradient of a
    position is its weight times that of the nll. They must add up to the denominator, and give the
    numerator; so a factor that is lost anywhere shows. The denominator itself is counted again in float64.

    Args:
        margin: see the module.
        dim: width of the hidden states that are tried, at most.
        tokens: scored positions of the two samples. More than 256 shows counts that are kept in bfloat16.
    """

    meaning = "the loss or its gradient is not the cross-entropy of the scored tokens"

    def __init__(
        self, margin: float = 6.0, dim: int = 64, tokens: tuple[int, int] = (300, 20)
    ) -> None:
        self.margin, self.dim, self.tokens = margin, dim, tokens

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        if context.shares_samples:
            return CheckResult(status=Status.SKIPPED, detail=SHARED)
        decoder: Any = context.model.decoder
        dim, generator = min(self.dim, decoder.hidden_dim), context.generator()
        count = sum(self.tokens)
        hidden, weight = (
            torch.randn(*shape, generator=generator).to(context.device, context.weight_dtype)
            for shape in ((1, count, dim), (decoder.vocab_size, dim))
        )
        weight = weight / dim**0.5
        batch = self._batch(decoder.vocab_size, generator).to(context.device)
        hidden.requires_grad_()
        weight.requires_grad_()
        with context.precision():
            output = context.loss(hidden, weight, batch)
        on_hidden, on_weight = torch.autograd.grad(output.numerator, (hidden, weight))
        assert batch.labels is not None
        targets = batch.labels[0]
        exact = _plain_loss(hidden[0], weight, targets, torch.float64)
        rough = _plain_loss(hidden[0], weight, targets, context.compute_dtype)

        worst = _Worst(self.margin, torch.finfo(context.compute_dtype).eps)
        direction = exact[1]
        weights = (on_hidden[0].double() * direction).sum(1) / direction.square().sum(1)
        expected = weights[:, None] * direction
        rounded = rough[1].double() * weights[:, None]
        worst.compare("d hidden", on_hidden[0], rounded, expected)
        on_head = _weight_gradient(hidden[0], weight, targets, weights)
        worst.add("d head", _total(on_weight, on_head), _total(rounded, expected))
        if output.token_nll is not None:
            found = output.token_nll[:, None]
            worst.compare("nll of tokens", found, rough[0][:, None], exact[0][:, None])
        plain = _total(rough[0], exact[0])
        numerator = (weights * exact[0]).sum()
        worst.add("sum", _total(output.numerator, numerator), plain)
        worst.add("weights", _total(output.denominator, weights.sum()), plain)
        counted = _in_float64(context, batch)
        worst.add("denominator", _total(output.denominator, counted), 0.0)
        return worst.result(f"{count} tokens, {decoder.vocab_size} ids")

    def _batch(self, vocab_size: int, generator: torch.Generator) -> VLMBatch:
        """Two samples of which every position is scored."""
        count = sum(self.tokens)
        labels = torch.randint(0, vocab_size, (1, count), generator=generator)
        return VLMBatch(
            input_ids=labels.roll(1, dims=1),
            position_ids=torch.arange(count).expand(3, 1, count),
            segments=Segments.from_lengths(self.tokens),
            visual_index=torch.zeros(0, dtype=torch.int64),
            labels=labels,
            scored_index=torch.arange(count),
            sample_ids=torch.tensor([[0] * self.tokens[0] + [1] * self.tokens[1]]),
            num_samples=2,
        )


def _attention_kinds(model: nn.Module) -> tuple[dict[tuple[str, int, int, int], Any], list[str]]:
    """Back ends by name and shape of heads, and classes whose shape cannot be told."""
    kinds: dict[tuple[str, int, int, int], Any] = {}
    unknown: set[str] = set()
    for module in model.modules():
        backend = getattr(module, "attention", None)
        if backend is None or isinstance(backend, nn.Module) or not callable(backend):
            continue
        heads = getattr(module, "num_heads", None)
        width = getattr(getattr(module, "proj", None), "in_features", None)
        head_dim = getattr(module, "head_dim", width // heads if width and heads else None)
        if heads is None or head_dim is None:
            unknown.add(type(module).__name__)
            continue
        inner = getattr(backend, "attention", backend)  # a wrapper of compiled blocks around it
        name = getattr(inner, "__name__", type(inner).__name__)
        kv_heads = getattr(module, "num_kv_heads", heads)
        kinds[name, heads, kv_heads, head_dim] = backend
    return kinds, sorted(unknown)


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], causal: bool
) -> Tensor:
    """One segment at a time, in the dtype that comes in."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    parts = []
    for q, k, v in zip(*(x.split(list(lengths)) for x in (query, key, value)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        if causal:
            hidden = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, -inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(parts)


def _with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Output, then the gradient of each input."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    output = function(*leaves)
    return (output, *torch.autograd.grad(output, leaves, cotangent.to(output.dtype)))


def _plain_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods (tokens,) and their gradient by hidden state (tokens, dim)."""
    head = weight.detach().to(dtype)
    accurate = torch.float64 if dtype == torch.float64 else torch.float32
    nll, gradient = [], []
    for row, target in zip(hidden.detach().split(chunk), targets.split(chunk), strict=True):
        row = row.to(dtype).requires_grad_()
        logits = F.linear(row, head).to(accurate)
        nll.append(F.cross_entropy(logits, target, reduction="none"))
        gradient += torch.autograd.grad(nll[-1].sum(), row)
    return torch.cat(nll).detach(), torch.cat(gradient)


def _weight_gradient(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, chunk: int = 64
) -> Tensor:
    """d (sum of weight * nll) / d head in float64, (vocab, dim)."""
    head = weight.detach().double()
    total = torch.zeros_like(head)
    pieces = (hidden.detach().double(), targets, weights)
    for row, target, w in zip(*(piece.split(chunk) for piece in pieces), strict=True):
        share = F.softmax(row @ head.T, dim=-1)
        share[torch.arange(len(row), device=row.device), target] -= 1
        total += (share * w[:, None]).T @ row
    return total


def _total(found: Tensor, expected: Tensor) -> float:
    """Difference of two tensors as a whole, relative to the second."""
    size = expected.detach().double().norm().clamp(min=1e-30)
    return float((found.detach().double() - expected.detach().double()).norm() / size)


def _in_float64(context: CheckContext, batch: VLMBatch) -> Tensor:
    """The denominator, with counts in float64 where the loss takes the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return context.loss.denominator(batch).double()
    finally:
        torch.set_default_dtype(before)
