"""What one part of a model keeps for its backward pass, by running it on tensors without data."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from vlmkit.planning.live_bytes import LiveBytes


@dataclass(frozen=True, kw_only=True)
class PartTrace:
    """Bytes of one part in one micro-batch; without its weights.

    Attributes:
        kept: alive after the forward pass: what autograd has saved, the input included, the output not.
        forward_peak: most at a time in the forward pass.
        backward_peak: most at a time in the backward pass, with `kept`, the gradient that comes in and
            those of weights.
        gradients: of weights, alive after the backward pass.
        cast: copies of weights that autocast keeps to the end of the step; part of `kept`.
    """

    kept: int = 0
    forward_peak: int = 0
    backward_peak: int = 0
    gradients: int = 0
    cast: int = 0


class FlashStandIn:
    """Keeps and returns what a flash attention kernel does: no scores, one logsumexp per query and head."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        """See `vlmkit.attention.base.Attention`."""
        out: Tensor = _Flash.apply(query, key, value)
        return out


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


Run = Callable[[nn.Module, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
"""Calls a part on its differentiable inputs, and on what parts share, which counts for none of them."""


class Tracer:
    """Traces parts under a precision.

    Args:
        dtype: of weights while they are used.
        activations: of hidden states between parts.
        autocast: whether matrix products run in bfloat16 whatever their operands are.
        attention: back end to put in the place of the configured one; None leaves it.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        activations: torch.dtype,
        autocast: bool = False,
        attention: Any = None,
    ) -> None:
        self.dtype, self.activations = dtype, activations
        self.autocast, self.attention = autocast, attention
        self.cache: dict[Any, PartTrace] = {}

    def __call__(
        self,
        key: Any,
        part: nn.Module,
        run: Run,
        shapes: Iterable[Sequence[int]],
        input_grad: bool,
        recompute: bool = False,
        shared: Sequence[tuple[Sequence[int], torch.dtype]] = (),
    ) -> PartTrace:
        """Trace a part, or remember it.

        Args:
            key: what makes the part and `run`, but for the other arguments.
            part: on meta.
            run: calls it.
            shapes: of its differentiable inputs.
            input_grad: whether gradients go back to them.
            recompute: whether only the inputs are kept.
            shared: shapes and dtypes of what parts share, such as rotary angles.
        """
        shapes = tuple(tuple(shape) for shape in shapes)
        weights = tuple(
            (name, tuple(p.shape), p.requires_grad) for name, p in part.named_parameters()
        )
        shared = tuple((tuple(shape), dtype) for shape, dtype in shared)
        whole = (key, weights, shapes, input_grad, recompute, shared)
        if whole not in self.cache:
            call = _Call(run, shapes, shared, self.activations, input_grad, recompute)
            self.cache[whole] = self._trace(part, call)
        return self.cache[whole]

    def _trace(self, part: nn.Module, call: _Call) -> PartTrace:
        part = copy.deepcopy(part).to(self.dtype)
        if self.attention is not None:
            for module in part.modules():
                if callable(vars(module).get("attention")):
                    module.attention = self.attention
        with FakeTensorMode(allow_non_fake_inputs=True):
            part.to_empty(device="cpu")
            kept, forward_peak, output = self._forward(part, call)
            trained = [p for p in part.parameters() if p.requires_grad]
            if not (trained or (call.input_grad and call.shapes)):
                return PartTrace(forward_peak=forward_peak)
            backward_peak, left = self._backward(part, call)
        gradients = sum(p.numel() * p.element_size() for p in trained if p.grad is not None)
        return PartTrace(
            kept=kept,
            forward_peak=forward_peak,
            backward_peak=backward_peak - output,
            gradients=gradients,
            cast=max(left - gradients, 0),
        )

    def _precision(self) -> Any:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast("cpu", torch.bfloat16)

    def _forward(self, part: nn.Module, call: _Call) -> tuple[int, int, int]:
        """Bytes kept, peak, and bytes that only the output holds."""
        shared = call.make_shared()
        with self._precision(), LiveBytes() as live:
            live.leave_out([*part.parameters(), *shared])
            inputs = call.make_inputs()
            out = call(part, inputs, shared)
            peak, nodes = live.peak, [tensor.grad_fn for tensor in out]
            inputs.clear()
            whole = live.current
            out.clear()
            kept = live.current
            del nodes
        return kept, peak, whole - kept

    def _backward(self, part: nn.Module, call: _Call) -> tuple[int, int]:
        """Peak, and bytes that are left when the graph is gone."""
        shared = call.make_shared()
        with self._precision(), LiveBytes() as live:
            live.leave_out([*part.parameters(), *shared])
            inputs = call.make_inputs()
            out = call(part, inputs, shared)
            live.reset_peak()
            torch.autograd.backward(out, [torch.empty_like(tensor) for tensor in out])
            peak = live.peak
            inputs.clear()
            out.clear()
            left = live.current
        return peak, left


@dataclass(frozen=True)
class _Call:
    """One way to call a part."""

    run: Run
    shapes: Sequence[Sequence[int]]
    shared: Sequence[tuple[Sequence[int], torch.dtype]]
    dtype: torch.dtype
    input_grad: bool
    recompute: bool

    def make_inputs(self) -> list[Tensor]:
        return [
            torch.empty(*shape, dtype=self.dtype, requires_grad=self.input_grad)
            for shape in self.shapes
        ]

    def make_shared(self) -> list[Tensor]:
        return [torch.empty(*shape, dtype=dtype) for shape, dtype in self.shared]

    def __call__(
        self, part: nn.Module, inputs: Sequence[Tensor], shared: Sequence[Tensor]
    ) -> list[Tensor]:
        if not self.recompute:
            return list(self.run(part, inputs, shared))
        out = checkpoint(
            lambda *xs: tuple(self.run(part, xs, shared)),
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return list(out)
