"""A training step of the vision encoder with its mergers alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from benchmarks.step.side import Gradients, Part, Side, fused_adamw
from benchmarks.step.training import build, load_theirs
from benchmarks.step.work import Sample, packed_batch, padded_inputs
from torch import Tensor, nn

from vlmkit.build import build_model
from vlmkit.checkpoint.key_map import published_entries
from vlmkit.checkpoint.parity_cases import Part as Piece
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import load_pretrained, save_pretrained
from vlmkit.training.meters.flops import ModelFlops
from vlmkit.training.meters.work import work_of

TOWER = "model.visual."


class VisionPart(Part):
    """Pictures in, features of all levels out; the objective is a fixed random projection of them."""

    tolerance = 1e-4

    def __init__(self, overrides: Sequence[str], pictures: Sequence[Piece]) -> None:
        """Keep the plan: images only, or one video."""
        self.overrides, self.pictures = overrides, pictures

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """One row that holds all pictures."""
        with torch.device("meta"):
            model = build_model(*self.overrides)
        assert isinstance(model, Qwen3VL)
        return padded_inputs([Sample(list(self.pictures), 2)], model)

    @property
    def pixels(self) -> tuple[Tensor, Tensor]:
        """Patches and grids."""
        kind = ("pixel_values", "image_grid_thw")
        if kind[0] not in self.inputs:
            kind = ("pixel_values_videos", "video_grid_thw")
        return self.inputs[kind[0]], self.inputs[kind[1]]

    def prepare(self, folder: Path) -> None:
        """See `Part.prepare`."""
        save_pretrained(build(self.overrides), folder, overwrite=True)

    def ours(self, folder: Path, device: torch.device) -> Side:
        """See `Part.ours`."""
        model = load_pretrained(folder, dtype=torch.float32, device=device).train()
        return OurTower(model, self.inputs, device)

    def theirs(self, folder: Path, device: torch.device) -> Side:
        """See `Part.theirs`."""
        return TheirTower(load_theirs(folder, device), *self.pixels, device)

    def describe(self) -> str:
        """See `Part.describe`."""
        patches, grids = self.pixels
        return f"{len(grids)} pictures or clips, {int(grids[:, 0].sum())} frames, {len(patches)} patches"


def projected(outputs: Sequence[Tensor]) -> Tensor:
    """Sum of the outputs, each number times a factor of its own, the same in both sides."""
    random = torch.Generator().manual_seed(1)
    factors = (torch.randn(x.shape, generator=random).to(x.device) for x in outputs)
    total = torch.zeros((), device=outputs[0].device)
    for x, factor in zip(outputs, factors, strict=True):
        total = total + (x * factor).mean()
    return total


class OurTower(Side):
    """vlmkit's encoder, merger and DeepStack mergers."""

    def __init__(self, model: Qwen3VL, inputs: dict[str, Tensor], device: torch.device) -> None:
        self.model = model
        self.batch = packed_batch(inputs, model).to(device)
        self.used: list[nn.Parameter] = [
            parameter
            for part in (model.vision, model.merger, model.fusion)
            for parameter in part.parameters()
        ]
        self.optimizer = fused_adamw(self.used)

    def loss(self) -> Tensor:
        """See `Side.loss`."""
        visual = self.model.encode_vision(self.batch)
        return projected([visual.embeddings, *visual.levels])

    def gradients(self) -> Gradients:
        """See `Side.gradients`."""
        found = {}
        for name, entry in published_entries(self.model).items():
            gradient = self.model.get_parameter(entry.ours).grad
            if name.startswith(TOWER) and gradient is not None:
                found[name] = entry.to_published(gradient)
        return found

    def flops(self) -> float:
        """See `Side.flops`."""
        found = ModelFlops(self.model).of(work_of(self.batch))
        parts = ("vision", "merger", "fusion")
        return sum(table[part] for table in (found.forward, found.backward) for part in parts)


class TheirTower(Side):
    """transformers' `visual`."""

    def __init__(self, model: Any, patches: Tensor, grids: Tensor, device: torch.device) -> None:
        self.tower = model.model.visual
        self.patches, self.grids = patches.to(device), grids.to(device)
        self.optimizer = fused_adamw(self.tower.parameters())

    def loss(self) -> Tensor:
        """See `Side.loss`."""
        found = self.tower(self.patches, grid_thw=self.grids)
        return projected([found.pooler_output, *found.deepstack_features])

    def gradients(self) -> Gradients:
        """See `Side.gradients`."""
        return {
            TOWER + name: parameter.grad
            for name, parameter in self.tower.named_parameters()
            if parameter.grad is not None
        }
