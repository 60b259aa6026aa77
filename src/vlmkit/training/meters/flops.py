"""FLOPs of a step by definition, for MFU (PaLM, arXiv 2204.02311, appendix B) and for planning.

Counted: every linear map, grouped expert matmul and attention product, a multiply-add as two. Not counted:
rotary, norms, softmax, activations, gathers, padding, the blank picture of a batch without any, and
whatever is computed a second time in order to save memory.

    forward     linear maps of the decoder per token (experts: the active ones), of the encoder per patch,
                of mergers per visual token, of the head per scored token; attention per segment, causal
                attention at half, full attention within a frame
    backward    per linear map, once the forward for the weight's gradient if the weight trains, and once
                for its input's if anything before it trains; per attention, twice the forward if
                anything before it trains
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import singledispatch

from torch import Tensor, nn

from vlmkit.batch import VLMBatch
from vlmkit.fusion.deepstack import DeepStack
from vlmkit.language.attention import GroupedQueryAttention
from vlmkit.language.layers import SwiGLU
from vlmkit.language.moe import MixtureOfExperts
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.meters.work import Work, work_of, work_per_token
from vlmkit.vision.siglip2 import VisionAttention
from vlmkit.vision.timm_vit import TimmViT


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of some work, by component."""

    forward: Mapping[str, float]
    backward: Mapping[str, float]

    @property
    def total(self) -> float:
        """Forward and backward of all components."""
        return sum(self.forward.values()) + sum(self.backward.values())


class ModelFlops:
    """What each unit of work costs in a model; made once, cheap to ask.

    Only modules, shapes and names are read, so the model may live on meta or be sharded. Linear maps of
    parts unknown here are taken to run in the order of their definition: those of the encoder and decoder
    once per patch and token, those of mergers and fusions once per visual token. A part that does
    otherwise registers what it does with `visit.register(Class)`.
    """

    def __init__(self, model: Qwen3VL, trained: Collection[str] | None = None) -> None:
        """Walk through the model.

        Args:
            model: on any device.
            trained: names of the parameters that train; None takes those with `requires_grad`.
        """
        self._trained = {
            id(parameter)
            for name, parameter in model.named_parameters()
            if (parameter.requires_grad if trained is None else name in trained)
        }
        self._forward: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._backward: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.merge_size = model.merger.merge_size
        self._visit_model(model)

    def of(self, work: Work) -> Flops:
        """FLOPs of some work."""
        return Flops(forward=_applied(self._forward, work), backward=_applied(self._backward, work))

    def total(self, work: Work) -> float:
        """Forward and backward of all components."""
        tables = (self._forward, self._backward)
        return sum(cost * getattr(work, unit) for t in tables for (_, unit), cost in t.items())

    def trains(self, *parts: nn.Module | Tensor) -> bool:
        """Whether any of these parameters, or of those in these modules, train."""
        return any(
            id(parameter) in self._trained
            for part in parts
            for parameter in (part.parameters() if isinstance(part, nn.Module) else [part])
        )

    def add(
        self, component: str, per: Mapping[str, float], weight_grad: bool, input_grad: bool
    ) -> None:
        """Count a product of two factors.

        Args:
            component: whose it is.
            per: multiply-adds for each unit of work.
            weight_grad: whether the gradient of the second factor is needed.
            input_grad: whether that of the first is.
        """
        for unit, multiplications in per.items():
            self._forward[component, unit] += 2 * multiplications
            self._backward[component, unit] += 2 * multiplications * (weight_grad + input_grad)

    def _visit_model(self, model: Qwen3VL) -> None:
        vision = Path(self, "vision", {"patches": 1}, "frame_pairs")
        visit(model.vision, vision)
        merger = Path(self, "merger", {"visual_tokens": 1}, "", grad=vision.grad)
        visit(model.merger, merger)
        fusion = Path(self, "fusion", {"visual_tokens": 1}, "", grad=vision.grad)
        visit(model.fusion, fusion)
        decoder = Path(self, "decoder", {"tokens": 1}, "causal_pairs")
        decoder.grad = merger.grad or self.trains(model.decoder.embedding)
        for key, layer in model.decoder.layers.items():
            visit(layer, decoder)
            if int(key) in model.fusion.receiving_layers:
                decoder.grad |= fusion.grad
        decoder.grad |= self.trains(model.decoder.norm)
        head = Path(self, "head", {"scored": 1}, "", grad=decoder.grad)
        head.linear(model.decoder.head_weight)


class Path:
    """Where a walk through the model stands.

    Attributes:
        grad: whether something before this point trains, so that gradients have to come back to it.
        component: whose FLOPs are counted.
    """

    def __init__(
        self,
        flops: ModelFlops,
        component: str,
        per: Mapping[str, float],
        pairs: str,
        grad: bool = False,
    ) -> None:
        """Begin.

        Args:
            flops: where products are counted.
            component: whose they are.
            per: how often a linear map is applied for each unit of work.
            pairs: unit of the pairs that attend to each other.
            grad: whether something before trains.
        """
        self.flops, self.component, self.per, self.pairs = flops, component, per, pairs
        self.grad = grad

    def linear(self, *weights: Tensor, component: str | None = None, share: float = 1.0) -> None:
        """Linear maps of one and the same input.

        Args:
            weights: of any shape; a multiply-add for each number.
            component: where it is not that of the path.
            share: of the weights that each input meets (active experts).
        """
        trains = [self.flops.trains(weight) for weight in weights]
        for weight, trained in zip(weights, trains, strict=True):
            per = {unit: times * weight.numel() * share for unit, times in self.per.items()}
            self.flops.add(component or self.component, per, trained, self.grad)
        self.grad |= any(trains)

    def attend(self, width: int, extra: Mapping[str, float] | None = None) -> None:
        """Scores and weighted sum over heads of `width` in all; `extra` pairs for units of work."""
        pairs = {self.pairs: 1.0, **(extra or {})}
        per = {unit: 2 * width * count for unit, count in pairs.items()}
        self.flops.add(self.component, per, self.grad, self.grad)

    def pass_through(self, *parts: nn.Module | Tensor) -> None:
        """Parameters without a product worth counting: norms, biases, tables."""
        self.grad |= self.flops.trains(*parts)


@singledispatch
def visit(module: nn.Module, path: Path) -> None:
    """Count a module's products; unless told otherwise, its parts in the order of their definition."""
    path.pass_through(*module.parameters(recurse=False))
    for child in module.children():
        visit(child, path)


@visit.register(nn.Linear)
@visit.register(nn.Conv2d)
@visit.register(nn.Conv3d)
def _linear(module: nn.Linear, path: Path) -> None:
    path.linear(module.weight)
    path.pass_through(module)


@visit.register
def _swiglu(module: SwiGLU, path: Path) -> None:
    _parallel(path, module.gate_proj, module.up_proj)
    visit(module.down_proj, path)


@visit.register
def _experts(module: MixtureOfExperts, path: Path) -> None:
    before = path.grad
    path.linear(module.router.weight, component="router")
    after_router, path.grad = path.grad, before  # the router only weighs what experts give
    share = module.num_active / module.num_experts
    path.linear(module.experts.gate_up_proj, component="experts", share=share)
    path.linear(module.experts.down_proj, component="experts", share=share)
    path.grad |= after_router


@visit.register
def _grouped_query_attention(module: GroupedQueryAttention, path: Path) -> None:
    _parallel(path, module.q_proj, module.k_proj, module.v_proj)
    path.pass_through(module.q_norm, module.k_norm)
    path.attend(module.num_heads * module.head_dim)
    visit(module.o_proj, path)


@visit.register
def _vision_attention(module: VisionAttention, path: Path) -> None:
    visit(module.qkv, path)
    path.attend(module.proj.in_features)
    visit(module.proj, path)


@visit.register
def _timm_vit(module: TimmViT, path: Path) -> None:
    visit(module.vit.patch_embed, path)
    # class and register tokens pass through the blocks beside the patches of each frame
    extra = float(getattr(module.vit, "num_prefix_tokens", 0))
    path.per = {"patches": 1.0, "frames": extra}
    path.pass_through(*module.vit.parameters(recurse=False))
    for block in module.vit.blocks:
        visit(block, path)
        path.attend(module.dim, {"patches": 2 * extra, "frames": extra**2})


@visit.register
def _deepstack(module: DeepStack, path: Path) -> None:
    _parallel(path, *module.mergers)


def _parallel(path: Path, *parts: nn.Module) -> None:
    """Parts beside each other, whatever they have been wrapped in."""
    before, after = path.grad, path.grad
    for part in parts:
        path.grad = before
        visit(part, path)
        after |= path.grad
    path.grad = after


def flops_of(model: Qwen3VL, batch: VLMBatch, trained: Collection[str] | None = None) -> Flops:
    """FLOPs of a micro-batch.

    Args:
        model: on any device, meta too.
        batch: only its lengths and grids are read.
        trained: names of the parameters that train; None takes those with `requires_grad`.
    """
    return ModelFlops(model, trained).of(work_of(batch))


def flops_per_token(
    model: Qwen3VL,
    row_tokens: float,
    visual_share: float,
    scored_share: float,
    trained: Collection[str] | None = None,
    frame_tokens: float = 256,
) -> Flops:
    """Mean FLOPs of one token, for estimates of GPU hours; arguments as in `work_per_token`."""
    flops = ModelFlops(model, trained)
    return flops.of(
        work_per_token(
            row_tokens=row_tokens,
            visual_share=visual_share,
            scored_share=scored_share,
            frame_tokens=frame_tokens,
            merge_size=flops.merge_size,
        )
    )


def _applied(costs: Mapping[tuple[str, str], float], work: Work) -> dict[str, float]:
    by_component: defaultdict[str, float] = defaultdict(float)
    for (component, unit), cost in costs.items():
        by_component[component] += cost * getattr(work, unit)
    return dict(by_component)
