"""The groups of ranks that each kind of parallelism talks within."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vlmkit.training.parallel.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """Views of the ranks.

    Attributes:
        layout: sizes of the axes.
        dense: (pipeline, replicate, weights, tensor), where `weights` is shard x context: what sharded
            weights live on. Views of one mesh, since FSDP and tensor parallelism must share their root.
        context: ranks that share the tokens of each row, 1-D.
        samples: ranks with different samples, 1-D: replicate x shard.
        tokens: ranks with different tokens, 1-D: replicate x shard x context.
        sparse: (pipeline, replicate, expert_shard, expert): the same ranks, as experts live on them, where
            they do not live as all weights do; None otherwise. Tensor ranks are among them, since each
            routes tokens of its own.
    """

    layout: Layout
    dense: DeviceMesh
    context: DeviceMesh
    samples: DeviceMesh
    tokens: DeviceMesh
    sparse: DeviceMesh | None

    @classmethod
    def make(cls, layout: Layout, device_type: str) -> Meshes:
        """Join ranks into groups. Every rank must call this, after the processes have been joined.

        Raises:
            ConfigError: the layout is made for another number of ranks.
        """
        layout = layout.for_ranks(torch.distributed.get_world_size())
        pipeline, replicate = layout.pipeline, layout.replicate
        shard, context, tensor = layout.shard, layout.context, layout.tensor

        def mesh(**axes: int) -> DeviceMesh:
            return init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))

        weights = shard * context
        experts = {"expert_shard": layout.expert_shard, "expert": layout.expert}
        return cls(
            layout=layout,
            dense=mesh(pipeline=pipeline, replicate=replicate, weights=weights, tensor=tensor),
            context=mesh(outer=pipeline * replicate * shard, context=context, tensor=tensor)[
                "context"
            ],
            samples=mesh(pipeline=pipeline, samples=replicate * shard, inner=context * tensor)[
                "samples"
            ],
            tokens=mesh(pipeline=pipeline, tokens=replicate * weights, tensor=tensor)["tokens"],
            sparse=mesh(pipeline=pipeline, replicate=replicate, **experts)
            if layout.expert * tensor > 1
            else None,
        )
