"""Starting weights of the text tower: transformers' SigLIP checkpoints -> `TextEncoder`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlmkit.errors import CheckpointError, listed

log = logging.getLogger(__name__)

PREFIX = "text_model."

KEY_MAP: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"embeddings\.((?:token|position)_embedding\.weight)", r"\1"),
        (r"encoder\.layers\.(\d+)\.layer_norm([12]\..+)", r"blocks.\1.norm\2"),
        (r"encoder\.layers\.(\d+)\.self_attn\.(.+)", r"blocks.\1.attention.\2"),
        (r"encoder\.layers\.(\d+)\.mlp\.(.+)", r"blocks.\1.\2"),
        (r"final_layer_norm\.(.+)", r"norm.\1"),
        (r"(head\..+)", r"\1"),
    )
)
"""Names under `text_model.` in the published layout, and ours."""


class TextWeights:
    """The text tower of a SigLIP checkpoint; its vision tower is not read."""

    def __init__(self, source: str) -> None:
        """Remember where the weights are; nothing is read yet.

        Args:
            source: a folder with `*.safetensors`, or one such file.
        """
        self.source = Path(source)

    def load_into(self, encoder: nn.Module) -> None:
        """Fill the parameters in place, in their dtype; after an error nothing has changed.

        Raises:
            CheckpointError: the weights cannot be read, or do not fit; names each key.
        """
        wanted = dict(encoder.named_parameters())
        values: dict[str, Tensor] = {}
        unexpected: list[str] = []
        for key, tensor in self._tensors():
            name = _our_name(key)
            if name in wanted:
                values[name] = tensor
            else:
                unexpected.append(key)
        problems = {
            "keys that have no place": unexpected,
            "parameters that get no value": [name for name in wanted if name not in values],
            "shapes that differ": [
                f"{name} is {tuple(value.shape)}, the text encoder has {tuple(wanted[name].shape)}"
                for name, value in values.items()
                if value.shape != wanted[name].shape
            ],
        }
        if any(problems.values()):
            found = "; ".join(
                f"{what}: {listed(names)}" for what, names in problems.items() if names
            )
            raise CheckpointError(f"text weights {self.source}: {found}")
        with torch.no_grad():
            for name, value in values.items():
                wanted[name].copy_(value)
        log.info("text weights: %d tensors loaded from %s", len(values), self.source)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        files = sorted(self.source.glob("*.safetensors")) if self.source.is_dir() else [self.source]
        if not files or not all(file.is_file() for file in files):
            raise CheckpointError(f"text weights: there is no .safetensors file at {self.source}")
        for path in files:
            try:
                with safe_open(path, "pt") as file:
                    for key in file.keys():  # noqa: SIM118  (not a dict)
                        if key.startswith(PREFIX):
                            yield key, file.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: not readable as safetensors ({error})") from error


def _our_name(key: str) -> str:
    """Empty if there is none."""
    for pattern, name in KEY_MAP:
        if match := pattern.fullmatch(key.removeprefix(PREFIX)):
            return match.expand(name)
    return ""
