"""Where a model's repeated blocks are."""

from __future__ import annotations

from torch import nn

from vlmkit.errors import ConfigError
from vlmkit.language.decoder import Decoder


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers, in order; none where there is no decoder."""
    decoder = getattr(model, "decoder", None)
    return list(decoder.layers.values()) if isinstance(decoder, Decoder) else []


def vision_blocks(model: nn.Module) -> list[nn.Module]:
    """The vision encoder's blocks, in order.

    Raises:
        ConfigError: the encoder does not hold them as `blocks`.
    """
    for encoder in (model.vision, getattr(model.vision, "vit", None)):
        blocks = getattr(encoder, "blocks", None)
        if isinstance(blocks, nn.ModuleList | nn.Sequential):
            return list(blocks)
    raise ConfigError(
        f"{type(model.vision).__name__} has no list of `blocks` to compile or recompute one by one"
    )
