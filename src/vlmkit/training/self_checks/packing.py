"""Samples of a packed row do not see each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.batch import IGNORED_LABEL, VLMBatch
from vlmkit.losses.base import LossOutput
from vlmkit.training.self_checks.base import (
    SHARED,
    CheckContext,
    CheckResult,
    Status,
    token_errors,
    within,
)


class PackedEqualsAlone:
    """Hidden states of a sample in a packed row against those of the sample alone.

    The tolerance is measured, since rounding depends on the precision, the depth and the device: the
    packed row runs again with the output of each decoder layer and encoder block moved at random by
    up to one unit of rounding, and `margin` times the change that this makes is allowed.

    Of each sample the 75th percentile of its tokens counts, not the worst: rounding alone may send a
    token of a mixture of experts to another expert. A leak reaches all that follows it.

    Args:
        margin: how far beyond the change by rounding a difference may go.
    """

    meaning = (
        "attention crosses from one sample into its neighbour, or pictures, positions or segments of a "
        "packed row belong to another sample; try attention=sdpa"
    )

    def __init__(self, margin: float = 8.0) -> None:
        self.margin = margin

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        if context.shares_samples:
            return CheckResult(status=Status.SKIPPED, detail=SHARED)
        model, device = context.model, context.device
        batch = context.packed.to(device)
        with (
            context.precision()
        ):  # with gradients, since compiled blocks may run as written without
            packed = model(batch).hidden.detach()
            with _rounding_noise(model, context):
                moved = model(batch).hidden.detach()
            alone = [
                model(context.alone(i).to(device)).hidden.detach().flatten(0, 1)
                for i in range(len(context.examples))
            ]
        assert batch.sample_ids is not None
        errors, noise = [], []
        for i, expected in enumerate(alone):
            own = batch.sample_ids == i
            errors.append(_upper_quartile(packed[own], expected))
            noise.append(_upper_quartile(moved[own], packed[own]))
        worst = max(range(len(errors)), key=lambda i: errors[i])
        detail = (
            f"{len(alone)} samples, {batch.num_tokens} tokens; rounding alone: {max(noise):.1e}"
        )
        if errors[worst] > self.margin * max(noise):
            detail += f"; worst: {_name(context, worst)}"
        return within(errors[worst], self.margin * max(noise), detail)


class Isolation:
    """d loss(sample i) / d input(sample j) is exactly zero for j other than i, and not for i itself.

    Inputs are the embedded tokens and the patches. Exact in any precision: what was never multiplied
    leaves no gradient.

    Args:
        through_vision: whether the patches of a sample must reach its loss. Set it to False for a
            component that starts by leaving vision out.
    """

    meaning = (
        "a sample learns from its neighbours in the packed row (attention, pictures or the loss mix them), "
        "or its own loss does not reach its inputs"
    )

    def __init__(self, through_vision: bool = True) -> None:
        self.through_vision = through_vision

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        if context.shares_samples:
            return CheckResult(status=Status.SKIPPED, detail=SHARED)
        batch = context.packed.to(context.device)
        if len(context.examples) < 2:
            return CheckResult(
                status=Status.SKIPPED, detail="needs two samples that fit its budget"
            )
        assert batch.sample_ids is not None
        owners = {"tokens": batch.sample_ids.flatten()}
        if batch.vision is not None:
            owners = {"patches": _owners_of_patches(context), **owners}
        leaks, silent = [], []
        largest = 0.0
        for i in range(batch.num_samples):
            gradients = self._gradients(context, batch, i)
            for (what, owner), gradient in zip(owners.items(), gradients, strict=True):
                size = _sizes(gradient, owner)
                others = size[owner != i]
                foreign = float(others.max()) if others.numel() else 0.0
                largest = max(largest, foreign)
                if foreign != 0:  # NaN too
                    leaks.append(f"{what} of others reach {_name(context, i)}")
                needed = what == "tokens" or self.through_vision
                if needed and bool((owner == i).any()) and not bool(size[owner == i].any()):
                    silent.append(f"{_name(context, i)} does not reach its own {what}")
        problems = leaks + silent
        return CheckResult(
            status=Status.FAILED if problems else Status.PASSED,
            measured=largest,
            tolerance=0.0,
            detail="; ".join(problems[:3])
            or f"{batch.num_samples} samples, {' and '.join(owners)}",
        )

    def _gradients(
        self, context: CheckContext, batch: VLMBatch, sample: int
    ) -> Sequence[Tensor | None]:
        """Of the loss of one sample, by patches if there are any, and by embedded tokens.

        Each has a forward pass of its own: compiled blocks give their buffers away in the backward pass.
        """
        inputs: list[Tensor] = []
        if batch.vision is not None:
            patches = batch.vision.patches.clone().requires_grad_()
            batch = replace(batch, vision=replace(batch.vision, patches=patches))
            inputs.append(patches)
        with context.precision(), _embedded_leaf(context.model, inputs):

            def loss_of_sample(hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> LossOutput:
                return context.loss(hidden, head_weight.detach(), _scored_only(batch, sample))

            objective = context.model(batch, read_out=loss_of_sample).read_out.numerator
        return torch.autograd.grad(objective, inputs, allow_unused=True)


def _name(context: CheckContext, number: int) -> str:
    example = context.examples[number]
    origin = example.plan.conversation.origin if example.plan is not None else ""
    return f"sample {number} ({origin or example.source})"


def _upper_quartile(found: Tensor, expected: Tensor) -> float:
    value = float(token_errors(found, expected).quantile(0.75))
    return value if value == value else float("inf")


@contextmanager
def _rounding_noise(model: nn.Module, context: CheckContext) -> Iterator[None]:
    """The output of each layer and block, moved at random by up to one unit of rounding."""
    generator = context.generator()
    eps = torch.finfo(context.compute_dtype).eps

    def move(module: nn.Module, inputs: Any, output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        noise = torch.rand(first.shape, generator=generator, dtype=torch.float32) * 2 - 1
        first = (first.float() * (1 + eps * noise.to(first.device))).to(first.dtype)
        return (first, *rest) if isinstance(output, tuple) else first

    encoder = getattr(model.vision, "vit", model.vision)  # timm's model stands inside its adapter
    blocks = getattr(encoder, "blocks", None)
    layers = [*model.decoder.layers.values(), *(blocks if blocks is not None else ())]  # type: ignore[union-attr,operator]
    handles = [layer.register_forward_hook(move) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _embedded_leaf(model: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    """The embedded tokens of the next forward pass as a leaf, added to `inputs`."""

    def catch(into: list[Tensor], module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        into.append(output.detach().requires_grad_())
        return into[-1]

    handle = model.decoder.embedding.register_forward_hook(partial(catch, inputs))  # type: ignore[union-attr]
    try:
        yield
    finally:
        handle.remove()


def _scored_only(batch: VLMBatch, sample: int) -> VLMBatch:
    """The batch with the labels of one sample."""
    assert batch.labels is not None
    assert batch.sample_ids is not None
    labels = batch.labels.masked_fill(batch.sample_ids != sample, IGNORED_LABEL)
    index = (labels != IGNORED_LABEL).flatten().nonzero().squeeze(1)
    return replace(batch, labels=labels, scored_index=index)


def _owners_of_patches(context: CheckContext) -> Tensor:
    """(patches,) the sample of each."""
    counts = [len(example.patches) if example.grids else 0 for example in context.examples]
    owner = torch.empty(sum(counts), dtype=torch.int64)
    for i, (start, stop) in enumerate(pairwise([0, *accumulate(counts)])):
        owner[start:stop] = i
    return owner.to(context.device)


def _sizes(gradient: Tensor | None, owner: Tensor) -> Tensor:
    """Largest absolute entry of each token's or patch's gradient."""
    if gradient is None:
        return torch.zeros(len(owner), device=owner.device)
    return gradient.reshape(len(owner), -1).abs().amax(dim=1)
