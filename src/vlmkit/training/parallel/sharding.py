"""Sharded data parallelism: ranks share weights, gradients and moments (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.blocks import decoder_layers, vision_blocks
from vlmkit.training.parallel.expert import mixtures_of, shard_dim
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes


def weights_mesh(meshes: Meshes) -> DeviceMesh:
    """Where dense weights are divided; 2-D, (replicate, weights), where there are copies."""
    if meshes.layout.replicate > 1:
        return meshes.dense["replicate", "weights"]
    return meshes.dense["weights"]


def experts_mesh(meshes: Meshes) -> DeviceMesh | None:
    """Where each rank's experts are divided, if not where dense weights are; 2-D where there are copies."""
    if meshes.sparse is None:
        return None
    if meshes.layout.replicate > 1:
        return meshes.sparse["replicate", "expert_shard"]
    return meshes.sparse["expert_shard"]


def shard_weights(model: Qwen3VL, meshes: Meshes, gather_dtype: torch.dtype | None = None) -> None:
    """Divide all parameters over `weights_mesh`, block by block. Last of all changes to a model.

    Experts go over `experts_mesh`, where there is one.

    Args:
        model: whose blocks are gathered one by one.
        meshes: of all ranks.
        gather_dtype: what weights are cast to before they are gathered; gradients are summed in float32.
            None: as they are.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=gather_dtype,
        reduce_dtype=torch.float32 if gather_dtype is not None else None,
        cast_forward_inputs=False,
    )
    options = {
        "mesh": weights_mesh(meshes),
        "mp_policy": policy,
        "reshard_after_forward": meshes.layout.zero == 3,
    }
    if (mesh := experts_mesh(meshes)) is not None:

        def placement(parameter: nn.Parameter) -> Shard | None:
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            dim = shard_dim(own.shape, meshes.layout.expert_shard)
            return None if dim is None else Shard(dim)

        for experts in mixtures_of(model):
            fully_shard(experts, **{**options, "mesh": mesh}, shard_placement_fn=placement)  # type: ignore[call-overload]
    for block in (*vision_blocks(model), *decoder_layers(model)):
        fully_shard(block, **options)  # type: ignore[call-overload]
    # the head is whole where the root is, in which the loss runs; a tied embedding is the head
    if model.decoder.head is not None:
        fully_shard(model.decoder.embedding, **options)  # type: ignore[call-overload]
    fully_shard(model, **options)  # type: ignore[call-overload]


def reshard(model: nn.Module) -> None:
    """Give up what was gathered and is still there: after passes that no backward pass follows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def without_exchange(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Backward passes that are not the last of a step, and what they need not exchange.

    Weights that are not divided throughout the step stay gathered, and gradients whole; copies of a shard
    exchange their sums once.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    if layout.zero == 1:
        model.set_requires_gradient_sync(False)
    model.set_requires_all_reduce(False)
    model.set_reshard_after_backward(layout.zero == 3)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
        model.set_requires_all_reduce(True)
        model.set_reshard_after_backward(True)
