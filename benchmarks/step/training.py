"""A whole training step of the model: forward, backward, AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from benchmarks.step.side import Gradients, Part, Side, autocast, fused_adamw
from benchmarks.step.work import Sample, described, packed_batch, padded_inputs
from torch import Tensor

from vlmkit.build import build_model
from vlmkit.checkpoint.key_map import published_entries
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.weighting import TokenWeighting
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import load_pretrained, save_pretrained
from vlmkit.training.meters.flops import ModelFlops
from vlmkit.training.meters.work import work_of


def build(overrides: Sequence[str]) -> Qwen3VL:
    """A model with random weights of a fixed seed."""
    torch.manual_seed(0)
    model = build_model(*overrides)
    assert isinstance(model, Qwen3VL)
    return model


def load_theirs(folder: Path, device: torch.device) -> Any:
    """transformers' model with its defaults for training: SDPA, and grouped_mm for experts."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.to(device).train()


class TrainingPart(Part):
    """One batch of samples, over and over."""

    def __init__(
        self,
        overrides: Sequence[str],
        samples: Sequence[Sample],
        precision: torch.dtype | None = None,
        tolerance: float = 1e-4,
    ) -> None:
        """Keep the plan; models are built later.

        Args:
            overrides: of the model's config.
            samples: of the batch.
            precision: of matrix products under autocast; None: float32.
            tolerance: see `Part`.
        """
        self.overrides, self.samples = overrides, samples
        self.precision, self.tolerance = precision, tolerance

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Padded rows."""
        with torch.device("meta"):
            model = build_model(*self.overrides)
        assert isinstance(model, Qwen3VL)
        return padded_inputs(self.samples, model)

    def prepare(self, folder: Path) -> None:
        """See `Part.prepare`."""
        save_pretrained(build(self.overrides), folder, overwrite=True)

    def ours(self, folder: Path, device: torch.device) -> Side:
        """See `Part.ours`."""
        model = load_pretrained(folder, dtype=torch.float32, device=device).train()
        return OurTraining(model, self.inputs, device, self.precision)

    def theirs(self, folder: Path, device: torch.device) -> Side:
        """See `Part.theirs`."""
        return TheirTraining(load_theirs(folder, device), self.inputs, device, self.precision)

    def describe(self) -> str:
        """See `Part.describe`."""
        return described(self.inputs)


class OurTraining(Side):
    """vlmkit: the samples packed into one row, the loss of all supervised tokens."""

    def __init__(
        self,
        model: Qwen3VL,
        inputs: dict[str, Tensor],
        device: torch.device,
        precision: torch.dtype | None,
    ) -> None:
        self.model, self.device, self.precision = model, device, precision
        self.batch = packed_batch(inputs, model).to(device)
        self.objective = CrossEntropy(TokenWeighting(power=0.0))
        self.optimizer = fused_adamw(model.parameters())

    def loss(self) -> Tensor:
        """See `Side.loss`."""
        with autocast(self.device, self.precision):
            result = self.model(self.batch, read_out=self.objective).read_out
        loss: Tensor = result.numerator / result.denominator
        return loss

    def gradients(self) -> Gradients:
        """See `Side.gradients`."""
        found = {}
        for name, entry in published_entries(self.model).items():
            gradient = self.model.get_parameter(entry.ours).grad
            assert gradient is not None
            found[name] = entry.to_published(gradient)
        return found

    def flops(self) -> float:
        """See `Side.flops`."""
        return ModelFlops(self.model).total(work_of(self.batch))


class TheirTraining(Side):
    """transformers: padded rows, labels handed to the model, which computes the loss."""

    def __init__(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        device: torch.device,
        precision: torch.dtype | None,
    ) -> None:
        self.model, self.device, self.precision = model, device, precision
        self.inputs = {name: value.to(device) for name, value in inputs.items()}
        self.optimizer = fused_adamw(model.parameters())

    def loss(self) -> Tensor:
        """See `Side.loss`."""
        with autocast(self.device, self.precision):
            loss: Tensor = self.model(**self.inputs, use_cache=False).loss
        return loss

    def gradients(self) -> Gradients:
        """See `Side.gradients`."""
        found = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return {
            # its experts are stored with two axes exchanged
            name: value.transpose(-1, -2) if ".experts." in name else value
            for name, value in found.items()
            if value is not None
        }
