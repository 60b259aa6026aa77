"""A model as a line of parts, in the order in which they run, each as large as it is on one rank."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.language.attention import GroupedQueryAttention
from vlmkit.language.layers import RouterStats, SwiGLU
from vlmkit.language.moe import Experts, MixtureOfExperts
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.blocks import decoder_layers, vision_blocks
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.pipeline_stage import split_layers
from vlmkit.vision.merger import PatchMerger
from vlmkit.vision.siglip2 import VisionAttention, VisionMLP

Kind = Literal["patches", "vision", "merger", "embedding", "decoder", "loss"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something that runs once in a micro-batch.

    Attributes:
        name: of its module.
        kind: what it runs on.
        module: on meta, after tensor parallelism; experts are whole.
        input_grad: whether gradients go back through it.
        is_unit: whether sharded weights are gathered for it alone; otherwise with the root's.
        dense: parameters but experts, before they are sharded.
        experts: those of experts, divided over `parallel.expert` already.
        trained: number of each trained parameter.
        expert_names: of those that belong to experts.
        owns_weights: False: the head of a tied model, whose weight is the embedding's.
        signature: equal for parts of which one trace will do.
        index: of a decoder layer.
        num_experts: of the layer, on all ranks together.
    """

    name: str
    kind: Kind
    module: nn.Module
    input_grad: bool
    is_unit: bool
    dense: int
    experts: int
    trained: Mapping[str, int]
    expert_names: frozenset[str]
    owns_weights: bool
    signature: tuple[object, ...]
    index: int = 0
    num_experts: int = 0

    @property
    def prefix(self) -> str:
        """What the model puts before the names of the part's parameters."""
        return {"patches": "vision", "loss": "decoder"}.get(self.kind, self.name)

    @property
    def numel(self) -> int:
        """Parameters before sharding; a tied head is the embedding's."""
        return self.dense + self.experts


class Head(nn.Module):
    """Final norm, head and loss."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, head


class PatchEmbedding(nn.Module):
    """All of an encoder but its blocks."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        for name, child in vision.named_children():
            if not isinstance(child, nn.ModuleList):
                self.add_module(name, child)


def parts_of(model: Qwen3VL, layout: Layout) -> list[Part]:
    """The line of parts on one rank of the tensor axis; pipeline stages take pieces of it.

    Args:
        model: on meta, frozen as it will be. Left as it is.
        layout: its `tensor`.
    """
    tensor = layout.tensor
    grad = False
    line: list[Part] = []
    made: dict[tuple[object, ...], nn.Module] = {}  # equal blocks are divided once

    def add(name: str, kind: Kind, module: nn.Module, is_unit: bool, index: int = 0) -> None:
        nonlocal grad
        wanted = {name: p.requires_grad for name, p in module.named_parameters()}
        shapes = tuple((n, tuple(p.shape), wanted[n]) for n, p in module.named_parameters())
        if (known := made.get((kind, shapes))) is None:
            known = made[kind, shapes] = divided(module, tensor) if tensor > 1 else module
        small = known
        numbers = {name: p.numel() for name, p in small.named_parameters()}
        experts = set(expert_names(small))
        if layout.expert > 1 and experts:
            if (few := made.get(("few", kind, shapes))) is None:
                few = made["few", kind, shapes] = with_fewer_experts(small, layout.expert)
            small = few
        line.append(
            Part(
                name=name,
                kind=kind,
                module=small,
                input_grad=grad,
                is_unit=is_unit,
                index=index,
                num_experts=sum(
                    m.num_experts for m in module.modules() if isinstance(m, MixtureOfExperts)
                ),
                dense=sum(n for key, n in numbers.items() if key not in experts),
                experts=sum(n for key, n in numbers.items() if key in experts) // layout.expert,
                trained={
                    key: n // layout.expert if key in experts else n
                    for key, n in numbers.items()
                    if wanted[key]
                },
                expert_names=frozenset(experts),
                owns_weights=kind != "loss" or model.decoder.head is not None,
                signature=(kind, shapes, tensor, layout.expert if experts else 1),
            )
        )
        grad |= any(wanted.values())

    add("vision.patches", "patches", PatchEmbedding(model.vision), False)
    for i, block in enumerate(vision_blocks(model)):
        add(f"vision.blocks.{i}", "vision", block, True)
    vision_grad = grad
    add("merger", "merger", model.merger, False)
    for name, module in model.fusion.named_modules():
        if isinstance(module, PatchMerger):
            merged, grad = grad, vision_grad
            add(f"fusion.{name}", "merger", module, False)
            grad |= merged
    is_tied = model.decoder.head is None
    add("decoder.embedding", "embedding", model.decoder.embedding, not is_tied)
    for i, layer in enumerate(decoder_layers(model)):
        add(f"decoder.layers.{i}", "decoder", layer, True, i)
    head = model.decoder.embedding if is_tied else model.decoder.head
    assert head is not None
    add("loss", "loss", Head(model.decoder.norm, head), False)
    return line


def stages_of_line(line: Sequence[Part], layout: Layout, model: Qwen3VL) -> list[list[Part]]:
    """Parts of each pipeline rank."""
    if layout.pipeline == 1:
        return [list(line)]
    ranges = split_layers(
        model.decoder.num_layers,
        layout.pipeline * layout.virtual_stages,
        max(model.fusion.receiving_layers, default=-1) + 1,
    )
    stages: list[list[Part]] = [[] for _ in range(layout.pipeline)]
    for part in line:
        stage = 0
        if part.kind == "decoder":
            at = next(i for i, layers in enumerate(ranges) if part.index in layers)
            stage = at % layout.pipeline
        elif part.kind == "loss":
            stage = layout.pipeline - 1
        stages[stage].append(part)
    return stages


def divided(module: nn.Module, tensor: int) -> nn.Module:
    """A copy with the matrices of one tensor rank, as `parallel.tensor` divides them."""
    small = copy.deepcopy(module)
    for part in [*small.modules()]:
        for name, (out_parts, in_parts) in _cuts(part).items():
            linear = part.get_submodule(name)
            if isinstance(linear, nn.Linear):
                _cut(linear, tensor if out_parts else 1, tensor if in_parts else 1)
        if isinstance(part, GroupedQueryAttention):
            part.num_heads //= tensor
            part.num_kv_heads = max(part.num_kv_heads // tensor, 1)
        elif isinstance(part, VisionAttention):
            part.num_heads //= tensor
        elif isinstance(part, MixtureOfExperts):
            part.__class__ = OwnTokensMixture
            part.tensor = tensor  # type: ignore[assignment]
        elif isinstance(part, nn.Embedding) and (part is small or isinstance(small, Head)):
            trained = part.weight.requires_grad
            rows = part.num_embeddings // tensor
            part.weight = nn.Parameter(part.weight[:rows].detach(), requires_grad=trained)
    return small


class OwnTokensMixture(MixtureOfExperts):
    """As tensor ranks run it: on their own tokens; of the others' there is nothing to keep."""

    tensor: int

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, RouterStats]:
        """See `FeedForward.forward`."""
        others = x.shape[1] - x.shape[1] // self.tensor
        out, stats = super().forward(x[:, others:], None)
        return F.pad(out, (0, 0, others, 0)), stats


def with_fewer_experts(module: nn.Module, expert: int) -> nn.Module:
    """A copy with the experts of one rank; tokens still meet as many as they do, on all ranks together."""
    small = copy.deepcopy(module)
    for part in small.modules():
        if isinstance(part, MixtureOfExperts):
            part.num_experts = max(part.num_experts // expert, part.num_active)
            for name in ("gate_up_proj", "down_proj"):
                whole = getattr(part.experts, name)
                few = nn.Parameter(
                    whole[: part.num_experts].detach(), requires_grad=whole.requires_grad
                )
                setattr(part.experts, name, few)
            router = part.router
            _cut(router, router.out_features // part.num_experts, 1)
    return small


OUT, IN = (True, False), (False, True)
CUTS: Mapping[type, Mapping[str, tuple[bool, bool]]] = {
    GroupedQueryAttention: {"q_proj": OUT, "k_proj": OUT, "v_proj": OUT, "o_proj": IN},
    SwiGLU: {"gate_proj": OUT, "up_proj": OUT, "down_proj": IN},
    VisionAttention: {"qkv": OUT, "proj": IN},
    VisionMLP: {"fc1": OUT, "fc2": IN},
    PatchMerger: {"fc1": OUT, "fc2": IN},
    Head: {"head": OUT},
}
"""Which side of which matrices is divided over tensor ranks."""


def _cuts(part: nn.Module) -> Mapping[str, tuple[bool, bool]]:
    return next((cuts for cls, cuts in CUTS.items() if isinstance(part, cls)), {})


def _cut(linear: nn.Linear, out_parts: int, in_parts: int) -> None:
    rows, columns = linear.out_features // out_parts, linear.in_features // in_parts
    weight = linear.weight
    linear.weight = nn.Parameter(
        weight[:rows, :columns].detach(), requires_grad=weight.requires_grad
    )
    if linear.bias is not None and out_parts > 1:
        bias = linear.bias
        linear.bias = nn.Parameter(bias[:rows].detach(), requires_grad=bias.requires_grad)
    linear.out_features, linear.in_features = rows, columns


def expert_names(module: nn.Module) -> Iterator[str]:
    """Parameters that are divided over `parallel.expert`."""
    for name, part in module.named_modules():
        if isinstance(part, Experts):
            for own in ("gate_up_proj", "down_proj"):
                yield f"{name}.{own}" if name else own
