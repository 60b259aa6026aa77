"""One module -> its part on each rank, in the order in which the kinds of parallelism combine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from vlmkit.errors import ConfigError
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.parallel.context import apply_context_parallel, context_parallel
from vlmkit.training.parallel.expert import apply_expert_parallel
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.pipeline import apply_pipeline
from vlmkit.training.parallel.refusals import check_layout
from vlmkit.training.parallel.sharding import shard_weights
from vlmkit.training.parallel.tensor import apply_tensor_parallel
from vlmkit.training.parallel.vocab_parallel import vocab_parallel
from vlmkit.training.vlm_module import VLMModule


class DivideModule:
    """Divides a `VLMModule` over the axes of a layout.

    Args:
        changes: of blocks, such as compilation; they see blocks whose matrices are divided, before weights
            are sharded.
    """

    def __init__(self, changes: Sequence[Callable[[nn.Module], None]] = ()) -> None:
        self.changes = tuple(changes)

    def __call__(self, module: VLMModule, meshes: Meshes) -> None:
        """Divide in place.

        Raises:
            ConfigError: the module is of another kind, or something does not divide.
        """
        if not isinstance(module, VLMModule) or not isinstance(module.model, Qwen3VL):
            raise ConfigError(
                f"{type(module).__name__} cannot be divided: take parallel=ddp or parallel=single"
            )
        model = module.model
        check_layout(meshes.layout, model, module.loss)
        plugin = module.trainer.precision_plugin
        is_mixed = isinstance(plugin, MixedPrecision) and plugin.precision == "bf16-mixed"
        gather_dtype = torch.bfloat16 if is_mixed else None
        loss = context_parallel(vocab_parallel(module.loss, meshes), meshes)
        if (pipeline := apply_pipeline(model, meshes, gather_dtype)) is not None:
            loss = pipeline.loss_here(loss)  # type: ignore[assignment]
            module.passes = pipeline
        apply_tensor_parallel(model, meshes)
        apply_context_parallel(model, meshes)
        apply_expert_parallel(model, meshes)
        del module.loss  # a module, which what takes its place may not be
        module.loss = loss
        for change in self.changes:
            change(model)
        shard_weights(model, meshes, gather_dtype)
