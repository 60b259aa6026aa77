"""Low-rank adapters (LoRA, Hu et al. 2021) through peft."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vlmkit.errors import ConfigError


class LoRA:
    """Adapters on chosen linear layers and stacks of experts; the rest frozen but for chosen names.

    Adapters sit beside the layer that they adapt (`...q_proj.lora_A.default.weight`), so they train at the
    learning rate of its component; the layer's own weight becomes `...q_proj.base_layer.weight`. Apply
    after the starting weights are loaded, and, to go on with a run, before its checkpoint is.
    """

    def __init__(
        self,
        rank: int,
        alpha: float,
        layers: Sequence[str],
        dropout: float = 0.0,
        experts: Sequence[str] = (),
        trained: Sequence[str] = (),
    ) -> None:
        """Keep the settings.

        Args:
            rank: of the adapters.
            alpha: their sum is scaled by `alpha / rank`.
            layers: name patterns of linear layers to adapt.
            dropout: on the adapters' input.
            experts: name patterns of stacked expert tensors to adapt, each expert by itself.
            trained: name patterns of parameters that train fully.

        Raises:
            ConfigError: peft is missing, the numbers do not fit, or there is nothing to adapt.
        """
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "lora needs the peft package: pip install 'vlmkit[lora]', or say lora=none"
            ) from error
        if rank < 1 or not 0 <= dropout < 1:
            raise ConfigError(f"lora.rank={rank} must be positive, lora.dropout={dropout} in 0..1")
        if not layers and not experts:
            raise ConfigError("lora.layers and lora.experts are both empty: say lora=none")
        if experts and dropout:
            raise ConfigError("lora.experts cannot have dropout: set lora.dropout=0")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.layers, self.experts, self.trained = tuple(layers), tuple(experts), tuple(trained)

    def __call__(self, model: nn.Module) -> None:
        """Put adapters into the model, in place; outputs do not change before the first step.

        Raises:
            ConfigError: a pattern fits nothing that can be adapted; names it.
        """
        from peft import LoraConfig, inject_adapter_in_model

        linears = [name for name, part in model.named_modules() if type(part) is nn.Linear]
        # the loss reads the head's weight without calling the layer, so an adapter would do nothing
        linears = [name for name in linears if name != "decoder.head"]
        stacks = [name for name, parameter in model.named_parameters() if parameter.ndim == 3]
        layers = _chosen("layers", self.layers, linears)
        experts = _chosen("experts", self.experts, stacks)
        for name in experts:  # peft's word for (experts, in, out)
            model.get_submodule(name.rpartition(".")[0]).is_transposed = True  # type: ignore[assignment]
        kept = [p for name, p in model.named_parameters() if _fits(name, self.trained)]
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=layers or "$nothing^",
            target_parameters=experts or None,
        )
        inject_adapter_in_model(config, model)
        for parameter in kept:
            parameter.requires_grad_(True)


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the adapters to their layers and take them out, in place: names are as before `LoRA`.

    Returns:
        The model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, BaseTunerLayer) or name.endswith(".base_layer"):
            continue
        inner: Any = layer
        while hasattr(inner, "merge"):  # one around the other for each tensor of experts
            inner.merge(safe_merge=True)
            inner = inner.base_layer
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, inner)
    return model


def _chosen(what: str, patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"lora.{what}: {pattern!r} fits nothing that can be adapted")
    return [name for name in names if _fits(name, patterns)]


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
