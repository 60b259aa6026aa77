"""Activation checkpointing: blocks whose activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlmkit.errors import ConfigError
from vlmkit.training.blocks import decoder_layers, vision_blocks


class BlockRecompute:
    """Keeps only the inputs of every k-th block, and runs the block again when its gradient is due.

    Gradients stay the same to the bit. Names of parameters do too. Apply after `BlockCompiler`.
    """

    def __init__(self, decoder_every: int = 1, vision_every: int = 1) -> None:
        """Keep the numbers.

        Args:
            decoder_every: 1 takes every decoder layer, 2 every second; 0 none.
            vision_every: as `decoder_every`, of the encoder's blocks.

        Raises:
            ConfigError: a number is negative, or both are 0.
        """
        if min(decoder_every, vision_every) < 0 or decoder_every == vision_every == 0:
            raise ConfigError(
                f"recompute.decoder_every={decoder_every} recompute.vision_every={vision_every}: 1 is "
                "every block, 0 none; recompute=none turns it off"
            )
        self.decoder_every, self.vision_every = decoder_every, vision_every

    def __call__(self, model: nn.Module) -> None:
        """Change the model's blocks in place."""
        for every, find in (
            (self.decoder_every, decoder_layers),
            (self.vision_every, vision_blocks),
        ):
            if every:
                for block in find(model)[::every]:
                    block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
