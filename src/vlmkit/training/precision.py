"""Lightning's precision, for batches that are frozen dataclasses."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from torch import nn

from vlmkit.errors import ConfigError
from vlmkit.training.blocks import decoder_layers


class BFloat16Precision(HalfPrecision):
    """Weights, gradients and optimiser state in bfloat16.

    Lightning's own plugin casts the batch, which it cannot do with a frozen dataclass and need not: the
    encoder casts patches to the dtype of its weights, and everything else in a batch is integers.
    """

    def __init__(self) -> None:
        super().__init__("bf16-true")

    def convert_input(self, data: Any) -> Any:
        """Return the batch as it is."""
        return data


class Float8Precision(MixedPrecision):
    """Matrix products of the decoder's linear layers in float8, by torchao; all else as bf16-mixed.

    Weights stay in float32 under their names. Scales are made for each tensor anew, in the backward pass
    too. Without `compile=blocks` the casts cost more than the products gain.
    """

    def __init__(self) -> None:
        """Check what float8 needs.

        Raises:
            ConfigError: torchao is missing, or the GPU knows no float8; names the option to use instead.
        """
        super().__init__("bf16-mixed", "cuda")
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        if capability is None or capability < (8, 9):
            found = "there is none" if capability is None else f"this one has {capability}"
            raise ConfigError(
                "precision=fp8 needs a CUDA device of compute capability 8.9 (Ada, Hopper) or newer, "
                f"{found}: use precision=bf16_mixed"
            )
        try:
            import torchao.float8  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "precision=fp8 needs the torchao package: pip install 'vlmkit[fp8]', or use "
                "precision=bf16_mixed"
            ) from error

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Change the decoder's linear layers in place."""
        to_float8(module.model)  # type: ignore[arg-type]
        return module


def to_float8(model: nn.Module) -> int:
    """Change the linear layers of the decoder's blocks to torchao's float8 ones, in place.

    Routers are left alone, and layers whose sides do not divide by 16, as the kernels ask.

    Returns:
        How many were changed.

    Raises:
        ConfigError: none could be changed.
    """
    from torchao.float8 import convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    def fits(layer: nn.Module, name: str) -> bool:
        assert isinstance(layer, nn.Linear)
        sides_fit = layer.in_features % 16 == 0 and layer.out_features % 16 == 0
        return sides_fit and not name.endswith("router")

    layers = decoder_layers(model)
    for block in layers:
        convert_to_float8_training(block, module_filter_fn=fits)
    changed = sum(isinstance(part, Float8Linear) for block in layers for part in block.modules())
    if not changed:
        raise ConfigError(
            "precision=fp8: the decoder has no linear layer with sides divisible by 16"
        )
    return changed


def check_precision(trainer: L.Trainer) -> None:
    """Refuse what the training step cannot do.

    Raises:
        ConfigError: names the flag to use instead.
    """
    plugin = trainer.precision_plugin
    if isinstance(plugin, HalfPrecision) and not isinstance(plugin, BFloat16Precision):
        raise ConfigError(f"trainer.precision={plugin.precision}: say precision=bf16_true instead")
    if getattr(plugin, "scaler", None) is not None:
        raise ConfigError(
            "trainer.precision=16-mixed would clip scaled gradients: say precision=bf16_mixed instead"
        )
