"""Hashes of components, to show what training has left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.distributed.tensor import DTensor

from vlmkit.training.policy import components_of


def component_digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the weights of each component: equal means untouched, bit for bit.

    Where weights are divided it is a hash of all ranks' parts, which differs from one layout to another; all
    ranks must call it.
    """
    components = components_of(model)
    hashes = {name: hashlib.sha256() for name in model.components if name in components.values()}  # type: ignore[union-attr, operator]
    is_divided = False
    for name, parameter in model.named_parameters():
        own = parameter.detach()
        if isinstance(own, DTensor):
            own, is_divided = own.to_local(), True
        raw = own.cpu().contiguous().reshape(-1).view(torch.uint8)
        hashes[components[name]].update(raw.numpy().tobytes())
    digests = {str(name): digest.hexdigest() for name, digest in hashes.items()}
    if not is_divided:
        return digests
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, digests)
    names = dict.fromkeys(name for part in every for name in part)  # stages have different ones
    return {
        name: hashlib.sha256("".join(part.get(name, "") for part in every).encode()).hexdigest()
        for name in names
    }


class RecordDigests(Callback):
    """Hands on the digests of the weights with which training starts.

    Args:
        write: called on the first rank.
    """

    def __init__(self, write: Callable[[dict[str, str]], None]) -> None:
        self.write = write

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hash on all ranks, write on one."""
        digests = component_digests(pl_module.model)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            self.write(digests)
