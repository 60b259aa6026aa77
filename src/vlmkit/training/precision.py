"""Lightning's precision, for batches that are frozen dataclasses."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.plugins.precision import HalfPrecision

from vlmkit.errors import ConfigError


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
