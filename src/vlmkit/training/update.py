"""How the gradient of a step becomes an update of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vlmkit.training.clipping import clip, component_norms
from vlmkit.training.optimizer_state import match_by_name
from vlmkit.training.policy import TrainingPolicy, components_of
from vlmkit.training.survival.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Norms of the gradient of a step; sharded parameters count as a whole."""

    total: Tensor  # () float32
    by_component: dict[str, Tensor]


class Update:
    """Gradient norms, clipping, optimiser, schedule."""

    def __init__(
        self,
        policy: TrainingPolicy,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        clip_norm: float = 1.0,
    ) -> None:
        """Keep the parts.

        Args:
            policy: which components train, and how fast.
            optimizer: makes the optimiser from groups of named parameters.
            schedule: makes the schedule from the optimiser and `total_steps`.
            clip_norm: largest norm of the gradient over all parameters.
        """
        self.policy, self.clip_norm = policy, clip_norm
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self._trained: dict[str, list[nn.Parameter]] = {}
        self._components: list[str] = []
        self._device = torch.device("cpu")

    def freeze(self, model: nn.Module) -> None:
        """Freeze what is not to be trained, and remember what is, before ranks keep a part of it each."""
        self.policy.freeze(model)
        components = components_of(model)
        named = model.named_parameters()
        self._components = list(
            dict.fromkeys(components[name] for name, p in named if p.requires_grad)
        )

    def prepare(self, model: nn.Module, total_steps: int) -> dict[str, Any]:
        """Make the optimiser and its schedule, in Lightning's words, for a model in its final place."""
        components = components_of(model)
        self._device = next(model.parameters()).device
        self._trained = {name: [] for name in self._components}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._trained.setdefault(components[name], []).append(parameter)
        optimizer = self.make_optimizer(self.policy.groups(model))
        optimizer.register_load_state_dict_pre_hook(match_by_name)
        schedule = self.make_schedule(optimizer, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def measure(self, parts: Sequence[ProcessGroup] = ()) -> Gradient:
        """Norm of the gradient, before clipping.

        Args:
            parts: see `component_norms`.
        """
        norms = component_norms(self._trained, self._device, parts)
        total = torch.stack(list(norms.values())).square().sum().sqrt()
        return Gradient(total=total, by_component=norms)

    def apply(
        self, optimizer: Any, schedule: Any, gradient: Gradient, verdict: Verdict
    ) -> dict[str, Tensor | float]:
        """Clip, step, and forget the gradients.

        A step that is not to be applied takes place without any gradient: counters of steps go on, while
        weights and moments stay as they are.

        Args:
            optimizer: Lightning's wrapper of what `prepare` has made.
            schedule: likewise.
            gradient: of `measure`.
            verdict: of the guards.

        Returns:
            What the log should know.
        """
        rates = self._rates(optimizer.param_groups)
        if verdict.apply:
            clip(self._trained, gradient.total, self.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] *= verdict.rate  # until the schedule sets it anew
        else:
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        return {
            "grad_norm": gradient.total,
            "lr": max(rates.values()) * verdict.rate,
            **{f"grad_norm/{name}": norm for name, norm in gradient.by_component.items()},
            **{f"lr/{name}": rate * verdict.rate for name, rate in rates.items()},
        }

    def _rates(self, groups: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Learning rate of each component, of those too that other pipeline stages have."""
        own = {group["component"]: group["lr"] for group in groups}
        part = max((g["lr"] / g["initial_lr"] for g in groups if g["initial_lr"]), default=0.0)
        peaks = self.policy.learning_rates
        return {name: own.get(name, part * (peaks[name] or 0.0)) for name in self._components} | own
