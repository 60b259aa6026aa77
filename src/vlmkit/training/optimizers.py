"""Optimisers that torch does not have in this form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from vlmkit.errors import ConfigError

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # Jordan 2024; steepest at zero, never quite converges
Group = dict[str, Any]


class Muon(Optimizer):
    """Momentum, orthogonalised per matrix (Jordan 2024; Liu et al., arXiv 2502.16982).

    As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, so that AdamW's learning rate and decay
    serve here too. Beyond it, a tensor of more than two dimensions is a stack of matrices, as experts
    are, orthogonalised in one batched product.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ) -> None:
        """Check the parameters and keep the numbers.

        Args:
            params: groups of parameters, each (..., rows, columns).
            lr: learning rate; an update has the root mean square 0.2 * lr, as AdamW's.
            weight_decay: decoupled.
            momentum: of the gradient.
            nesterov: whether to look ahead.
            ns_steps: Newton-Schulz iterations.

        Raises:
            ConfigError: a parameter is no matrix, or is sharded.
        """
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
        }
        super().__init__(params, defaults)
        _refuse_sharded(self.param_groups, "optim=muon")
        for parameter in _parameters(self.param_groups):
            if parameter.ndim < 2:
                raise ConfigError(f"Muon is for matrices, got a shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                direction = buffer
                if group["nesterov"]:
                    direction = parameter.grad.lerp(buffer, group["momentum"])
                update = orthogonalize(direction, group["ns_steps"])
                rms = 0.2 * max(parameter.shape[-2:]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * rms)
        return loss


def orthogonalize(matrices: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Singular values to about 1, by Newton-Schulz iterations in bfloat16.

    Args:
        matrices: (..., rows, columns).
        steps: iterations.
        eps: smallest norm to divide by.

    Returns:
        As `matrices`, bfloat16; singular values lie in about 0.5 .. 1.5.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16, copy=True).reshape(-1, *matrices.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)


class MuonAdamW(Optimizer):
    """Muon for the hidden matrices, AdamW for everything else, as one optimiser.

    Both work on this object's groups and state: schedules, checkpoints and Lightning see one optimiser.
    A fused projection, such as a vision block's `qkv`, is one matrix to Muon.
    """

    def __init__(
        self,
        params: Iterable[Group],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        matrix_components: Sequence[str],
        spared_names: Sequence[str] = (),
        momentum: float = 0.95,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        """Divide the groups.

        Args:
            params: groups of named parameters, each with its `component`.
            lr: of groups without one.
            weight_decay: likewise.
            matrix_components: whose 2-D parameters go to Muon; of `experts`, stacks of matrices as well.
            spared_names: patterns of parameters that go to AdamW all the same.
            momentum: of Muon.
            ns_steps: of Muon.
            betas: of AdamW.
            eps: of AdamW.
            fused: AdamW's kernel; None takes torch's default.

        Raises:
            ConfigError: a group without a component or names, or parameters that are sharded.
        """
        for_muon: list[Group] = []
        for_adamw: list[Group] = []
        for group in params:
            rest = {key: value for key, value in group.items() if key != "params"}
            if "component" not in rest or not all(isinstance(p, tuple) for p in group["params"]):
                raise ConfigError("optim=muon needs groups of named parameters with a `component`")
            stacks = rest["component"] == "experts"
            matrices: list[Any] = []
            others: list[Any] = []
            for name, parameter in group["params"]:
                is_matrix = parameter.ndim == 2 or (stacks and parameter.ndim == 3)
                chosen = rest["component"] in matrix_components and is_matrix
                spared = any(fnmatchcase(name, pattern) for pattern in spared_names)
                (matrices if chosen and not spared else others).append((name, parameter))
            for_muon += [{**rest, "params": matrices}] if matrices else []
            for_adamw += [{**rest, "params": others}] if others else []

        self._parts: list[Optimizer] = []
        if for_muon:
            self._parts.append(Muon(for_muon, lr, weight_decay, momentum, ns_steps=ns_steps))
        if for_adamw:
            adamw = AdamW(for_adamw, lr, betas, eps, weight_decay, fused=fused)
            self._parts.append(adamw)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Make the parts work on this object's groups and state."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()  # loading a state replaces both

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = _evaluate(closure)
        for part in self._parts:
            part.step()
        return loss


class StochasticAdamW(Optimizer):
    """AdamW for bfloat16 weights, rounded stochastically.

    Rounding to nearest loses every change below 1/512 of a weight, or of a moment. Here weights and both
    moments are computed in float32 and rounded up or down at random, so that they are right on average
    (Zamirai et al., arXiv 2010.06192). The noise is a function of (seed, step, place of the parameter), so
    a resumed run draws the same. float32 parameters are updated without any noise.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Keep the numbers.

        Args:
            params: groups of parameters.
            lr: learning rate.
            betas: of the first and the second moment.
            eps: added to the root of the second moment.
            weight_decay: decoupled.
            seed: of the rounding; the same on all ranks, whose copies must stay equal.

        Raises:
            ConfigError: a parameter is sharded.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        _refuse_sharded(self.param_groups, "optim=adamw_bf16")
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = _evaluate(closure)
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, index)
                index += 1
        return loss

    def _update(self, parameter: Tensor, group: Group, index: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # on the host, so that reading it waits for nothing
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, lr, (beta1, beta2) = int(state["step"]), group["lr"], group["betas"]
        grad = parameter.grad.float()  # type: ignore[union-attr]
        mean = state["exp_avg"].float().lerp(grad, 1 - beta1)
        square = state["exp_avg_sq"].float().lerp(grad.square(), 1 - beta2)
        root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        weight = parameter.float().mul(1 - lr * group["weight_decay"])
        weight.addcdiv_(mean, root, value=-lr / (1 - beta1**step))

        noise = torch.Generator(parameter.device)
        noise.manual_seed(hash((self.seed, step, index)) % 2**63)
        for kept, exact in (
            (parameter, weight),
            (state["exp_avg"], mean),
            (state["exp_avg_sq"], square),
        ):
            half = kept.dtype == torch.bfloat16
            kept.copy_(round_stochastically(exact, noise) if half else exact)


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """To one of the two nearest bfloat16 values, with the probability that makes the mean exact.

    A bfloat16 is the upper half of a float32: 16 random bits are added to the lower half, which is then
    cut off.

    Args:
        values: (...) float32.
        generator: on the device of `values`.

    Returns:
        As `values`, bfloat16; what is not finite stays as it is.
    """
    noise = torch.randint(
        2**16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    rounded = ((values.view(torch.int32) + noise) & -(2**16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _parameters(groups: Iterable[Group]) -> Iterable[Tensor]:
    return (parameter for group in groups for parameter in group["params"])


def _refuse_sharded(groups: Iterable[Group], option: str) -> None:
    if any(isinstance(parameter, DTensor) for parameter in _parameters(groups)):
        raise ConfigError(f"{option} works on whole parameters, these are sharded: use optim=adamw")
