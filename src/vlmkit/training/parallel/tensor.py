"""Tensor parallelism: ranks share each matrix, and between matrices the tokens (sequence parallelism)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

from vlmkit.batch import IGNORED_LABEL, Segments, VisualTokens, VLMBatch
from vlmkit.errors import ConfigError
from vlmkit.fusion.deepstack import DeepStack
from vlmkit.fusion.none import NoFusion
from vlmkit.language.decoder import Decoder
from vlmkit.language.layers import RMSNorm, RouterStats, SwiGLU
from vlmkit.language.moe import MixtureOfExperts
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.vision.merger import PatchMerger
from vlmkit.vision.siglip2 import SigLIP2ViT

TOKENS = Shard(1)  # of hidden states (1, tokens, dim)


def apply_tensor_parallel(model: Qwen3VL, meshes: Meshes) -> None:
    """Divide matrices over `meshes.dense["tensor"]`, and decoder tokens between them.

    After the model has been divided into stages, if it is, and before all else. All ranks of the group must
    be given the same batches. Each then has the same hidden states, (1, tokens, dim): rows laid end to end
    and padded. The head stays divided, so the loss must be `vocab_parallel(loss, meshes)`.

    Without `fully_shard`, what is not divided stays an ordinary parameter, with equal gradients on all
    ranks. Gradients need no further reduction over the group.

    Experts are not divided here: `apply_expert_parallel` must follow. Each rank routes the tokens that it has
    between matrices, so that mixtures exchange nothing over this group but sums of their statistics.

    What cannot be divided is known to `check`.
    """
    if meshes.layout.tensor == 1:
        return
    mesh = meshes.dense["tensor"]
    _divide_decoder(model.decoder, mesh)
    for block in model.vision.blocks:  # type: ignore[union-attr]
        parallelize_module(
            block,
            mesh,
            {
                "attention.qkv": HeadwiseParallel(block.attention.num_heads),  # type: ignore[union-attr, arg-type]
                "attention.proj": RowwiseParallel(),
                **{f"mlp.{name}": style for name, style in MLP.items()},
            },
        )
        block.attention.num_heads //= mesh.size()  # type: ignore[union-attr, operator]
    for merger in model.modules():
        if isinstance(merger, PatchMerger):
            parallelize_module(merger, mesh, dict(MLP))
    model.register_forward_pre_hook(
        _OneLine(2 * meshes.layout.context * mesh.size()), with_kwargs=True
    )
    model.fusion.register_forward_pre_hook(_OwnVisualTokens(mesh))


MLP: Mapping[str, ParallelStyle] = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}


def check(model: Qwen3VL, tensor: int) -> None:
    """Make sure that a whole model can be divided over `tensor` ranks.

    Raises:
        ConfigError: names what does not divide, and both numbers.
    """
    if tensor == 1:
        return
    for name, part, known in (
        ("vision", model.vision, SigLIP2ViT),
        ("fusion", model.fusion, DeepStack | NoFusion),
        *(
            (f"layer {key}", layer.feed_forward, SwiGLU | MixtureOfExperts)
            for key, layer in model.decoder.layers.items()
        ),
    ):
        if not isinstance(part, known):
            raise ConfigError(
                f"parallel.tensor={tensor}: {name} is {type(part).__name__}, which cannot be divided; "
                "take parallel.tensor=1 and divide weights with parallel.shard"
            )
    if adapted := [name for name, _ in model.named_parameters() if "lora_" in name]:
        raise ConfigError(
            f"parallel.tensor={tensor} with LoRA: adapters such as {adapted[0]} cannot be divided; "
            "take parallel.tensor=1"
        )
    decoder, vision = model.decoder, model.vision
    sizes = {
        "language num_kv_heads": decoder.num_kv_heads,
        "vocab_size": decoder.vocab_size,
        **{
            f"intermediate_dim of layer {key}": layer.feed_forward.down_proj.in_features  # type: ignore[union-attr]
            for key, layer in decoder.layers.items()
            if isinstance(layer.feed_forward, SwiGLU)
        },
        **{
            f"vision {name}": size
            for block in vision.blocks  # type: ignore[union-attr]
            for name, size in (
                ("num_heads", block.attention.num_heads),
                ("mlp_dim", block.mlp.fc1.out_features),
            )
        },
        "merger width": model.merger.fc1.out_features,
    }
    for name, size in sizes.items():
        if size % tensor:
            raise ConfigError(
                f"parallel.tensor={tensor} must divide {name}={size}: take a smaller parallel.tensor"
            )


def _divide_decoder(decoder: Decoder, mesh: DeviceMesh) -> None:
    """One all-gather and one reduce-scatter around attention, and around the feed-forward."""
    for module in decoder.modules():
        if isinstance(module, RMSNorm):
            module.fused = False
    ends: dict[str, ParallelStyle] = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "norm": SequenceParallel(use_local_output=True),
    }
    if decoder.head is not None:
        ends["head"] = ColwiseParallel()
    # of stages the first one embeds tokens, and the last one has norm and head
    # no set: its order differs from rank to rank, and dividing is a collective
    here = [name for name in ends if next(getattr(decoder, name).parameters(), None) is not None]
    parallelize_module(decoder, mesh, {name: ends[name] for name in here})
    for layer in decoder.layers.values():
        parallelize_module(
            layer,
            mesh,
            {
                "attention_norm": SequenceParallel(use_local_output=True),
                "attention": _whole_tokens(num_arguments=4),
                "attention.q_proj": ColwiseParallel(),
                "attention.k_proj": ColwiseParallel(),
                "attention.v_proj": ColwiseParallel(),
                # a rank sees some of the heads only: gains get a part of their gradient
                "attention.q_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
                "attention.k_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
                "attention.o_proj": RowwiseParallel(output_layouts=TOKENS),
                "feed_forward_norm": SequenceParallel(use_local_output=True),
                **(SWIGLU if isinstance(layer.feed_forward, SwiGLU) else EXPERTS),
            },
        )
        layer.attention.num_heads //= mesh.size()  # type: ignore[union-attr, operator]
        layer.attention.num_kv_heads //= mesh.size()  # type: ignore[union-attr, operator]
    if "embedding" in here:
        first = next(iter(decoder.layers.values()))
        first.register_forward_pre_hook(
            lambda _, args: (_redistribute(args[0], mesh, Replicate(), TOKENS), *args[1:])
        )
    if "norm" in here:
        decoder.norm.register_forward_hook(
            lambda _, args, out: _redistribute(out, mesh, TOKENS, Replicate())
        )


def _whole_tokens(num_arguments: int) -> PrepareModuleInput:
    """All tokens; as one DTensor the matrices that read it share one reduction of its gradient."""
    others = (None,) * (num_arguments - 1)
    return PrepareModuleInput(
        input_layouts=(TOKENS, *others),  # type: ignore[arg-type]
        desired_input_layouts=(Replicate(), *others),  # type: ignore[arg-type]
    )


SWIGLU: Mapping[str, ParallelStyle] = {
    "feed_forward": _whole_tokens(num_arguments=2),
    "feed_forward.gate_proj": ColwiseParallel(),
    "feed_forward.up_proj": ColwiseParallel(),
    "feed_forward.down_proj": RowwiseParallel(output_layouts=TOKENS),
}


class _OwnTokens(ParallelStyle):
    """A mixture of experts that each rank runs on its own tokens; statistics are those of all."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, MixtureOfExperts)
        rank, ranks = device_mesh.get_local_rank(), device_mesh.size()
        SequenceParallel(sequence_dim=0, use_local_output=True)._apply(module.router, device_mesh)

        def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x, mask = args
            return x, None if mask is None else mask.chunk(ranks, 1)[rank]

        def add(_: nn.Module, args: tuple[Any, ...], found: tuple[Tensor, RouterStats]) -> Any:
            out, stats = found
            parts = [stats.assignments, stats.probability, stats.num_tokens[None]]
            summed = _redistribute(torch.cat(parts), device_mesh, Partial(), Replicate())
            assignments, probability, num_tokens = summed.split([len(p) for p in parts])
            return out, RouterStats(
                assignments=assignments, probability=probability, num_tokens=num_tokens[0]
            )

        module.register_forward_pre_hook(cut)
        module.register_forward_hook(add)
        return module


EXPERTS: Mapping[str, ParallelStyle] = {"feed_forward": _OwnTokens()}


def _redistribute(x: Tensor, mesh: DeviceMesh, source: Any, target: Any) -> Tensor:
    whole = DTensor.from_local(x, mesh, [source], run_check=False)
    return whole.redistribute(placements=[target]).to_local()


def _shared(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """`x` itself, equal on all ranks, of which each rank uses a part: its gradients are summed up."""
    whole = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
    return whole.to_local(grad_placements=[Partial()])


class HeadwiseParallel(ParallelStyle):
    """A linear map to queries, keys and values of all heads; each rank computes some heads' three.

    Its rows, (three, heads, head_dim), are divided in their order, as they are saved, so that a rank owns
    rows that others compute with: they are gathered, and their gradients scattered. For a wide picture
    that is less than what the block exchanges of its patches.
    """

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            divided = distribute_tensor(parameter.data, device_mesh, [Shard(0)])
            module.register_parameter(
                name, nn.Parameter(divided, requires_grad=parameter.requires_grad)
            )
        heads, ranks, rank = self.num_heads, device_mesh.size(), device_mesh.get_local_rank()

        def own_heads(parameter: DTensor) -> Tensor:
            whole = parameter.redistribute(placements=[Replicate()])
            rows = whole.to_local(grad_placements=[Partial()])
            return rows.unflatten(0, (3, ranks, -1))[:, rank].flatten(0, 1)

        def forward(x: Tensor) -> Tensor:
            weight, bias = own_heads(module.weight), own_heads(module.bias)  # type: ignore[arg-type]
            return F.linear(_shared(x, device_mesh), weight, bias)

        assert heads % ranks == 0
        module.forward = forward  # type: ignore[method-assign]
        return module


class _OneLine:
    """Before the model: lays the rows of its batch end to end, up to a multiple of `unit` tokens.

    What names a token by its place among batch * seq tokens stays right.
    """

    def __init__(self, unit: int) -> None:
        self.unit = unit

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace the batch.

        Raises:
            ConfigError: the model is to generate.
        """
        if kwargs.get("cache") is not None or len(args) > 2:
            raise ConfigError(
                "a model divided by parallel.tensor cannot generate: export it and load it on one rank"
            )
        if args:
            return (one_line(args[0], self.unit), *args[1:]), kwargs
        return args, {**kwargs, "batch": one_line(kwargs["batch"], self.unit)}


def one_line(batch: VLMBatch, unit: int) -> VLMBatch:
    """The same tokens as one row of a multiple of `unit`; what is added is a segment of its own."""
    tokens = batch.input_ids.numel()
    added = -tokens % unit
    if len(batch.input_ids) == 1 and not added:
        return batch
    segments = Segments(
        lengths=(*batch.segments.lengths, *([added] if added else [])),
        cu_seqlens=F.pad(batch.segments.cu_seqlens, (0, 1), value=tokens + added)
        if added
        else batch.segments.cu_seqlens,
    )
    mask = batch.padding_mask
    if mask is None and added:
        mask = torch.zeros_like(batch.input_ids, dtype=torch.bool)

    def line(values: Tensor | None, fill: int) -> Tensor | None:
        return (
            None
            if values is None
            else F.pad(values.flatten(-2), (0, added), value=fill)[..., None, :]
        )

    input_ids, position_ids = line(batch.input_ids, 0), line(batch.position_ids, 0)
    assert input_ids is not None
    assert position_ids is not None
    return replace(
        batch,
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        labels=line(batch.labels, IGNORED_LABEL),
        sample_ids=line(batch.sample_ids, -1),
        response_ids=line(batch.response_ids, -1),
        padding_mask=line(mask, True),
        num_padding=batch.num_padding + added,
    )


class _OwnVisualTokens:
    """Before the fusion: of the features, those whose tokens this rank has. Nothing waits for the device."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def __call__(
        self, fusion: DeepStack | NoFusion, args: tuple[Tensor, int, VisualTokens]
    ) -> tuple[Tensor, int, VisualTokens] | None:
        hidden, layer_idx, visual = args
        if layer_idx not in fusion.receiving_layers:
            return None
        tokens = hidden.shape[1]
        index = visual.index - tokens * self.mesh.get_local_rank()
        is_own = (index >= 0) & (index < tokens)
        levels = list(visual.levels)
        received = fusion.receiving_layers.index(layer_idx)
        levels[received] = torch.where(is_own[:, None], _shared(levels[received], self.mesh), 0)
        index = torch.where(is_own, index, 0)  # the others add zero somewhere
        return hidden, layer_idx, replace(visual, index=index, levels=tuple(levels))
