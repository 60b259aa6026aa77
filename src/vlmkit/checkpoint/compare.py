"""The same checkpoint in transformers and in vlmkit, compared part by part on the same inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.batch import VLMBatch
from vlmkit.checkpoint.key_map import name_pattern, published_entries, stored_transposed
from vlmkit.checkpoint.parity_cases import Inputs
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.models.qwen3vl import Qwen3VL

LOGITS = "logits"
GRADIENT = "gradient of "

# Modules whose outputs are compared: name in the table, in transformers, in vlmkit.
PROBES: Sequence[tuple[str, str, str]] = (
    ("patch embedding", "model.visual.patch_embed", "vision.patch_embed"),
    ("vision block {i}", "model.visual.blocks.{i}", "vision.blocks.{i}"),
    ("merger", "model.visual.merger", "merger"),
    ("DeepStack merger {i}", "model.visual.deepstack_merger_list.{i}", "fusion.mergers.{i}"),
    ("decoder layer {i}", "model.language_model.layers.{i}", "decoder.layers.{i}"),
    ("final norm", "model.language_model.norm", "decoder.norm"),
)

# Parameters whose gradients are compared, as patterns over published names.
GRADIENTS: Sequence[str] = (
    r"model\.visual\.patch_embed\.proj\.weight",
    r"model\.visual\.pos_embed\.weight",
    r"model\.visual\.blocks\.0\.attn\.qkv\.weight",
    r"model\.visual\.merger\.linear_fc2\.weight",
    r"model\.visual\.deepstack_merger_list\.0\.norm\.weight",
    r"model\.language_model\.embed_tokens\.weight",
    r"model\.language_model\.layers\.0\.self_attn\.(q_proj|k_norm)\.weight",
    r"model\.language_model\.layers\.1\.mlp\.(down_proj|gate)\.weight",
    r"model\.language_model\.layers\.1\.mlp\.experts\.(gate_up_proj|down_proj)",
    r"lm_head\.weight",
)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What one implementation computed for one batch, on the host.

    Outputs are those at real tokens, patches of images before those of videos.
    """

    outputs: dict[
        str, Tensor
    ]  # by name in the table; (patches, dim), (visual_tokens, dim), (tokens, dim)
    gradients: dict[str, Tensor]  # by published name of the parameter


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two tensors lie apart."""

    worst: float  # infinite where either tensor holds a NaN or an infinity
    largest: float  # absolute value in the reference

    @property
    def relative(self) -> float:
        """Worst difference as a share of the reference's largest value."""
        if not self.largest or math.isinf(self.worst):
            return self.worst
        return self.worst / self.largest


def difference(reference: Tensor, ours: Tensor) -> Difference:
    """Compare two tensors of one shape.

    A difference that is not finite counts as infinite: a NaN would be lost among the numbers that
    `max` compares it with.
    """
    assert reference.shape == ours.shape, f"{tuple(reference.shape)} and {tuple(ours.shape)}"
    reference, ours = reference.double(), ours.double()
    worst = float((reference - ours).abs().max())
    return Difference(
        worst=worst if math.isfinite(worst) else math.inf, largest=float(reference.abs().max())
    )


def record_reference(model: nn.Module, inputs: Inputs, backward: bool = False) -> Recording:
    """Run a Qwen3-VL of transformers.

    Args:
        model: the reference.
        inputs: as its processor returns them.
        backward: whether to record gradients, too.
    """
    real = inputs["attention_mask"].bool()
    device = next(model.parameters()).device
    moved = {name: tensor.to(device) for name, tensor in inputs.items()}
    learning = {name: p for name, p in model.named_parameters() if _is_compared(name)}
    with (
        _recorded(_probes(model, published=True)) as calls,
        _learning(model, learning.values() if backward else ()),
    ):
        logits = model(**moved, use_cache=False).logits
        gradients = _gradients(logits, real, learning) if backward else {}
    outputs = {label: _at_real_tokens(torch.cat(parts), real) for label, parts in calls.items()}
    return Recording(
        outputs={**outputs, LOGITS: _at_real_tokens(logits.detach().cpu(), real)},
        gradients=gradients,
    )


def record_ours(model: Qwen3VL, inputs: Inputs, backward: bool = False) -> Recording:
    """Run our model on the same inputs.

    Args:
        model: ours.
        inputs: as the transformers processor returns them.
        backward: whether to record gradients, too.
    """
    real = inputs["attention_mask"].bool()
    merge_size = model.merger.merge_size
    to_batch = partial(batch_from_hf, special_tokens=model.special_tokens, merge_size=merge_size)
    batch = to_batch(inputs).to(next(model.parameters()).device)
    entries = [entry for name, entry in published_entries(model).items() if _is_compared(name)]
    learning = {entry.published: model.get_parameter(entry.ours) for entry in entries}
    with (
        _recorded(_probes(model, published=False)) as calls,
        _learning(model, learning.values() if backward else ()),
    ):
        logits = model.logits(batch)
        gradients = _gradients(logits, real, learning) if backward else {}
    outputs = {}
    order = _patch_order(inputs, to_batch)
    for label, (output,) in calls.items():
        if output.ndim == 3:
            outputs[label] = _at_real_tokens(output, real)
        elif order is not None:
            windows = (
                order if len(output) == len(order) else order[:: merge_size**2] // merge_size**2
            )
            outputs[label] = output[windows.argsort()]
    return Recording(
        outputs={**outputs, LOGITS: _at_real_tokens(logits.detach().cpu(), real)},
        gradients={
            entry.published: entry.to_published(gradients[entry.published])
            for entry in entries
            if entry.published in gradients
        },
    )


def compare(model: Qwen3VL, reference: Recording, ours: Recording) -> dict[str, Difference]:
    """Differences by name in the table, in the order of the forward pass, gradients last.

    Args:
        model: ours, for the layouts of its parameters; may be on meta.
        reference: of transformers.
        ours: of our model.
    """
    found = {
        label: difference(output, ours.outputs[label])
        for label, output in reference.outputs.items()
    }
    entries = published_entries(model)
    shapes = {name: tuple(gradient.shape) for name, gradient in reference.gradients.items()}
    swapped = stored_transposed([entries[name] for name in shapes], shapes)
    for name, gradient in reference.gradients.items():
        if swapped and entries[name].maybe_transposed:
            gradient = gradient.transpose(-1, -2)
        found[GRADIENT + name] = difference(gradient, ours.gradients[name])
    return found


def _probes(model: nn.Module, published: bool) -> dict[str, nn.Module]:
    """What is compared, by its name in the table."""
    found = {}
    for label, reference, ours in PROBES:
        pattern = name_pattern(reference if published else ours)
        for name, module in model.named_modules():
            if match := pattern.fullmatch(name):
                found[label.format_map(match.groupdict())] = module
    return found


@contextmanager
def _recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect on the host what modules return while the context lasts."""
    calls: dict[str, list[Tensor]] = {}

    def keep(label: str, module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        calls.setdefault(label, []).append(tensor.detach().cpu())

    hooks = [
        module.register_forward_hook(partial(keep, label)) for label, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _learning(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Only the chosen parameters need gradients, so that large models fit; all is restored after."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    learning = list(chosen)
    for parameter in learning:
        parameter.requires_grad_(True)
    try:
        with torch.set_grad_enabled(bool(learning)):
            yield
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
            parameter.grad = None


def _gradients(
    logits: Tensor, real: Tensor, learning: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Gradients of a cross entropy against fixed, arbitrary targets, by published name."""
    logits = logits[real.to(logits.device)].float()  # (tokens, vocab)
    targets = torch.arange(len(logits), device=logits.device) * 7919 % logits.shape[-1]
    F.cross_entropy(logits, targets).backward()
    return {name: p.grad.cpu() for name, p in learning.items() if p.grad is not None}


def _patch_order(inputs: Inputs, to_batch: Callable[[Inputs], VLMBatch]) -> Tensor | None:
    """For each patch of our batch its place in the reference, which keeps images before videos."""
    numbered, count = dict(inputs), 0
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs:
            numbered[name] = torch.arange(count, count + len(inputs[name]))[:, None]
            count += len(inputs[name])
    vision = to_batch(numbered).vision
    return None if vision is None else vision.patches[:, 0]


def _at_real_tokens(output: Tensor, real: Tensor) -> Tensor:
    """Drop padding: (batch, seq, dim) -> (tokens, dim); what vision returns has none."""
    return output[real] if output.ndim == 3 else output


def _is_compared(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in GRADIENTS)
