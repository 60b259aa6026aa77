"""One step of training as vlmkit and as transformers take it: the same weights, samples and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from benchmarks.on_gpu.canvases import Pack
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from vlmkit.build import build, build_model
from vlmkit.checkpoint.key_map import published_entries
from vlmkit.checkpoint.published_config import published_config
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.weighting import TokenWeighting
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.blocks import decoder_layers, vision_blocks
from vlmkit.training.compilation import BlockCompiler
from vlmkit.training.recompute import BlockRecompute

Recompute = tuple[int, int]
"""Every how many decoder layers and vision blocks are computed again; 0: none."""


class Step:
    """Passes over all packs, then the optimiser.

    Its learning rate is 0: every step is the same work on the same weights, so both sides can be compared
    at any time.

    Args:
        losses: of the packs, in order; each a mean over scored tokens.
        optimizer: of what trains.
    """

    def __init__(self, losses: Sequence[Callable[[], Tensor]], optimizer: Optimizer) -> None:
        self.losses, self.optimizer = losses, optimizer

    def passes(self) -> None:
        """Forward and backward of each pack."""
        for loss in self.losses:
            loss().backward()

    def update(self) -> None:
        """The optimiser's step; gradients are gone afterwards."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        """All of it."""
        self.passes()
        self.update()

    @torch.no_grad()
    def loss(self) -> float:
        """Mean over packs."""
        return sum(float(loss()) for loss in self.losses) / len(self.losses)


def new_model(config: DictConfig, device: torch.device) -> Qwen3VL:
    """Random bfloat16 weights of a fixed seed, made on the device."""
    torch.manual_seed(0)
    model = build_model(config=config, device=device, dtype=torch.bfloat16)
    assert isinstance(model, Qwen3VL)
    return model.train()


def our_step(
    model: Qwen3VL, packs: Sequence[Pack], config: DictConfig, device: torch.device
) -> Step:
    """vlmkit: packed rows, logits of scored tokens only."""
    objective = CrossEntropy(TokenWeighting(power=0.0), kernel=build(config.loss.kernel))

    def of(batch: Any) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            found = model(batch, read_out=objective).read_out
            mean: Tensor = found.numerator / found.denominator
            return mean

        return loss

    return Step([of(pack.batch.to(device)) for pack in packs], optimizer_of(model, config))


def their_step(model: Any, packs: Sequence[Pack], config: DictConfig, device: torch.device) -> Step:
    """transformers: one sample a row, padded, logits of all tokens."""

    def of(inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            found: Tensor = model(**inputs, use_cache=False).loss
            return found

        return loss

    moved = [{k: v.to(device) for k, v in pack.padded().items()} for pack in packs]
    return Step([of(inputs) for inputs in moved], optimizer_of(model, config))


def optimizer_of(model: nn.Module, config: DictConfig) -> Optimizer:
    """The configured one, with learning rate 0."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: Optimizer = build(config.optim.optimizer)(trained, lr=0.0)
    return optimizer


def dress(model: nn.Module, recompute: Recompute, compiler: BlockCompiler | None) -> None:
    """Compile or recompute blocks in place of what was done to them before."""
    for block in (*decoder_layers(model), *vision_blocks(model)):
        vars(block).pop("forward", None)
    if compiler is not None:
        compiler(model)
    if any(recompute):
        BlockRecompute(*recompute)(model)


def published_tensors(model: Qwen3VL) -> dict[str, Tensor]:
    """The model's weights by their published names; they share its memory."""
    return {
        name: entry.to_published(model.get_parameter(entry.ours).detach())
        for name, entry in published_entries(model).items()
    }


def transformers_model(
    model: Qwen3VL, weights: Mapping[str, Tensor], attention: str, device: torch.device
) -> Any:
    """transformers' model of the same sizes around the same tensors.

    Args:
        model: whose sizes are taken; may be on meta.
        weights: of `published_tensors`; parameters that are not among them stay on meta.
        attention: `sdpa` or `flash_attention_2`.
        device: of the weights.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    config = transformers.AutoConfig.for_model(**published_config(model))
    with parameters_on_meta():
        theirs = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    state = {
        # its experts are stored with two axes exchanged
        name: value.transpose(-1, -2).contiguous() if ".experts." in name else value
        for name, value in weights.items()
    }
    for name, value in state.items():
        assert shapes[name] == tuple(value.shape), (name, shapes[name], tuple(value.shape))
    theirs.load_state_dict(state, strict=False, assign=True)
    theirs.tie_weights()
    for name, buffer in theirs.named_buffers():
        owner, _, key = name.rpartition(".")
        theirs.get_submodule(owner)._buffers[key] = buffer.to(device)
    return theirs.train()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters that modules are given have no storage; buffers, such as rotary frequencies, do."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            trains = parameter.requires_grad
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=trains)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def adapt(model: Any, config: DictConfig) -> None:
    """Put the configured adapters into transformers' model, on the layers that vlmkit has them on."""
    from peft import LoraConfig, inject_adapter_in_model

    ours = config.lora
    inject_adapter_in_model(
        LoraConfig(
            r=ours.rank,
            lora_alpha=ours.alpha,
            lora_dropout=ours.dropout,
            target_modules=r".*language_model\.layers\..*_proj",
        ),
        model,
    )
    for name, parameter in model.named_parameters():
        if "merger" in name:  # of the encoder and of DeepStack, which train fully
            parameter.requires_grad_(True)
