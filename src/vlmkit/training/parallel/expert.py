"""Expert parallelism: ranks have some experts each, and send tokens to those that have the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F

from vlmkit.errors import ConfigError
from vlmkit.language.moe import Experts, MixtureOfExperts, grouped_swiglu
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes


def apply_expert_parallel(model: Qwen3VL, meshes: Meshes) -> None:
    """Divide the experts of each layer over `meshes.sparse["expert"]`.

    After tensor and context parallelism, before compilation, recomputation and `shard_weights`, which shards
    them over `expert_shard`. Each rank routes its own tokens; with tensor parallelism these are the tokens
    that it has between matrices. Nothing else of the model knows of it.

    What cannot be divided is known to `check`.
    """
    layout = meshes.layout
    if meshes.sparse is None:
        return
    # FSDP averages over ranks of `expert_shard` what is to be averaged over those of `weights`
    scale = layout.tensor / layout.expert
    mesh = meshes.sparse["expert"]
    for experts in mixtures_of(model):
        if layout.expert > 1:
            for name, parameter in list(experts.named_parameters()):
                own = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
                experts.register_parameter(
                    name, nn.Parameter(own, requires_grad=parameter.requires_grad)
                )
            experts.forward = ExpertExchange(experts, mesh.get_group())  # type: ignore[method-assign]
        if scale != 1:
            experts.forward = _ScaledGradients(experts.forward, scale)  # type: ignore[method-assign]


def mixtures_of(model: Qwen3VL) -> Iterator[Experts]:
    """Experts of each layer that has some."""
    for layer in model.decoder.layers.values():
        if isinstance(layer.feed_forward, MixtureOfExperts):
            yield layer.feed_forward.experts


def check(model: Qwen3VL, layout: Layout) -> None:
    """Make sure that a model's experts can be divided.

    Raises:
        ConfigError: there are none, adapters stand around them, or something does not divide; names both
            numbers.
    """
    if layout.expert == layout.tensor == 1:
        return
    found = [
        (name, layer.feed_forward)
        for name, layer in model.decoder.layers.items()
        if isinstance(layer.feed_forward, MixtureOfExperts)
    ]
    if layout.expert > 1 and not found:
        raise ConfigError(
            f"parallel.expert={layout.expert}: the model has no experts; take parallel.expert=1"
        )
    for name, mixture in found:
        if type(mixture.experts) is not Experts:
            raise ConfigError(
                f"parallel.expert={layout.expert} with LoRA on the experts of layer {name}: adapters cannot "
                "be divided; take parallel.expert=1 and parallel.tensor=1, or lora.experts=[]"
            )
        if mixture.num_experts % layout.expert:
            raise ConfigError(
                f"parallel.expert={layout.expert} must divide num_experts={mixture.num_experts} of layer "
                f"{name}"
            )
        shards = layout.expert_shard
        for parameter in mixture.experts.parameters():
            own = (len(parameter) // layout.expert, *parameter.shape[1:])
            if shard_dim(own, shards) is None:
                raise ConfigError(
                    f"the {shards} ranks with the same experts (parallel.shard * context * tensor / expert) "
                    f"divide none of the sides {own} of the expert tensors of layer {name}: take a larger "
                    "parallel.expert, or parallel.replicate"
                )


def shard_dim(shape: Sequence[int], ranks: int) -> int | None:
    """First side of a rank's experts that `ranks` divide."""
    return next((dim for dim, size in enumerate(shape) if size % ranks == 0), None)


class ExpertExchange:
    """`Experts.forward` where each rank of a group has an equal run of the experts.

    Rows go to the ranks of their experts and come back: two all-to-alls forward and two backward, and one of
    counts. A rank that is sent nothing runs its experts on one empty row, so that every parameter gets a
    gradient and all ranks meet in the same collectives. How many rows come is known on the device
    first; reading it makes the host wait once per layer.
    """

    def __init__(self, experts: Experts, group: dist.ProcessGroup) -> None:
        """Keep the parts.

        Args:
            experts: whose tensors are divided over `group` by experts.
            group: ranks that share them.
        """
        self.experts, self.group = experts, group
        self.ranks = dist.get_world_size(group)

    @torch.compiler.disable
    def __call__(self, rows: Tensor, counts: Tensor) -> Tensor:
        """See `Experts.forward`; `rows` are own ones, `counts` speak of all experts."""
        received = torch.empty_like(counts)  # of own experts, by the rank that sends
        dist.all_to_all_single(received, counts, group=self.group)
        by_rank = torch.stack([counts, received]).unflatten(1, (self.ranks, -1))  # (2, ranks, own)
        there, here = by_rank.sum(-1).tolist()
        own = by_rank[1]
        total = sum(here)

        gathered: Tensor = _Exchange.apply(rows, here, there, self.group)
        expert = torch.arange(own.shape[1], device=rows.device).repeat(self.ranks)
        expert = expert.repeat_interleave(own.flatten(), output_size=total)
        order = expert.argsort(stable=True)
        # index_select, whose backward pass adds to each row once, and in no order that matters
        out = self._run(gathered.index_select(0, order), own.sum(0, dtype=torch.int32), total)
        out = out.index_select(0, order.argsort())
        returned: Tensor = _Exchange.apply(out, there, here, self.group)
        return returned

    def _run(self, rows: Tensor, counts: Tensor, total: int) -> Tensor:
        if not total:
            rows, counts = F.pad(rows, (0, 0, 0, 1)), counts.clone()
            counts[0] = 1
        gate_up, down = (_own(p) for p in (self.experts.gate_up_proj, self.experts.down_proj))
        return grouped_swiglu(rows, gate_up, down, counts)[:total]


class _Exchange(torch.autograd.Function):
    """Rows for each rank -> rows from each rank."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.splits, ctx.group = (received, sent), group
        return _exchanged(rows, received, sent, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        received, sent = ctx.splits
        return _exchanged(grad, sent, received, ctx.group), None, None, None


def _exchanged(
    rows: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup
) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out


class _ScaledGradients:
    """A function of rows, in whose backward pass gradients of weights are scaled, those of rows are not.

    By scaling what goes in and out: there are fewer numbers than in the weights, and FSDP's own factor is not
    kept by all back ends.
    """

    def __init__(self, forward: Any, scale: float) -> None:
        self.forward, self.scale = forward, scale

    def __call__(self, rows: Tensor, counts: Tensor) -> Tensor:
        rows = _ScaleGradient.apply(rows, 1 / self.scale)
        scaled: Tensor = _ScaleGradient.apply(self.forward(rows, counts), self.scale)
        return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.scale, None


def _own(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
