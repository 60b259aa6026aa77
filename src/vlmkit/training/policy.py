"""Which components train, and how fast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import nn

from vlmkit.errors import ConfigError


class HasComponents(Protocol):
    """A model that says what its components are.

    Attributes:
        components: name patterns of each component's parameters; the first that fits decides.
    """

    components: Mapping[str, tuple[str, ...]]


def components_of(model: nn.Module) -> dict[str, str]:
    """The component of every parameter, by the parameter's name. Shared parameters appear once.

    Raises:
        ConfigError: a parameter belongs to none; names it.
    """
    patterns: Mapping[str, tuple[str, ...]] = model.components  # type: ignore[assignment]
    found: dict[str, str] = {}
    for name, _ in model.named_parameters():
        fitting = (part for part, globs in patterns.items() if _fits(name, globs))
        component = next(fitting, None)
        if component is None:
            raise ConfigError(
                f"{name} belongs to none of the components {', '.join(patterns)}: add a pattern for it "
                f"to {type(model).__name__}.components"
            )
        found[name] = component
    return found


def _fits(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


@dataclass(frozen=True, kw_only=True)
class ComponentSummary:
    """A line of the table that is printed before step 0."""

    component: str
    num_parameters: int
    num_trained: int
    learning_rate: float | None  # None: frozen
    weight_decay: float


class TrainingPolicy:
    """Freezes components and groups the parameters of the others for the optimiser."""

    def __init__(
        self, learning_rates: Mapping[str, float | None], weight_decay: float = 0.0
    ) -> None:
        """Keep the settings.

        Args:
            learning_rates: peak rate of each component; None freezes it.
            weight_decay: of matrices; norms, biases, embeddings and position tables are spared.

        Raises:
            ValueError: a rate is negative, or nothing is to be trained.
        """
        for name, rate in learning_rates.items():
            if rate is not None and not rate >= 0:
                raise ValueError(f"learning_rates.{name} is {rate}; null freezes a component")
        if all(rate is None for rate in learning_rates.values()):
            raise ValueError("all learning_rates are null: nothing would be trained")
        self.learning_rates, self.weight_decay = dict(learning_rates), weight_decay

    def freeze(self, model: nn.Module) -> None:
        """Let the parameters of trained components, and only those, take gradients.

        In a model with adapters, what these have frozen stays frozen.

        Raises:
            ConfigError: rates and components do not have the same names.
        """
        components = components_of(model)
        self._check_names(model, set(components.values()))
        has_adapters = any(".lora_" in name for name in components)
        for name, parameter in model.named_parameters():
            is_trained = self.learning_rates[components[name]] is not None
            if not (is_trained and has_adapters):
                parameter.requires_grad_(is_trained)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Named parameters that train, by component and by whether they decay."""
        components = components_of(model)
        spared = _spared_from_decay(model)
        groups: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = components[name], id(parameter) in spared
                groups.setdefault(key, []).append((name, parameter))
        return [
            {
                "params": named,
                "lr": self.learning_rates[component],
                "weight_decay": 0.0 if is_spared else self.weight_decay,
                "component": component,
            }
            for (component, is_spared), named in groups.items()
        ]

    def summary(self, model: nn.Module) -> list[ComponentSummary]:
        """Components that have parameters, in the model's order."""
        components = components_of(model)
        lines = []
        for component in model.components:  # type: ignore[union-attr]
            mine = [p for name, p in model.named_parameters() if components[name] == component]
            if mine:
                lines.append(
                    ComponentSummary(
                        component=str(component),
                        num_parameters=sum(p.numel() for p in mine),
                        num_trained=sum(p.numel() for p in mine if p.requires_grad),
                        learning_rate=self.learning_rates[str(component)],
                        weight_decay=self.weight_decay,
                    )
                )
        return lines

    def _check_names(self, model: nn.Module, present: set[str]) -> None:
        known = list(model.components)  # type: ignore[arg-type]
        if unknown := sorted(set(self.learning_rates) - set(known)):
            raise ConfigError(
                f"learning_rates.{unknown[0]}: {type(model).__name__} has no such component; it has "
                f"{', '.join(known)}"
            )
        if missing := sorted(present - set(self.learning_rates)):
            raise ConfigError(
                f"learning_rates.{missing[0]} is missing: give a rate, or null to freeze the component"
            )


def _spared_from_decay(model: nn.Module) -> set[int]:
    """Norms, biases, embeddings and position tables."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim < 2 or name == "bias" or isinstance(module, nn.Embedding)
    }
