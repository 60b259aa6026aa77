"""A run on disk: whole config, environment, metrics, weights, plots."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn

from vlmkit.errors import CheckpointError

PACKAGES = (
    "vlmkit",
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "timm",
    "tokenizers",
    "numpy",
)


class RunFolder:
    """Names of the files in a run, and reading and writing them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.weights = self.path / "checkpoint" / "model.safetensors"
        self.tokenizer = self.path / "checkpoint" / "tokenizer.json"
        self.plots = self.path / "plots"

    def save_environment(self) -> None:
        """Write versions, machine and command line."""
        versions: dict[str, str | None] = {}
        for name in PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        facts: dict[str, Any] = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "packages": versions,
            "arguments": sys.argv[1:],
        }
        write_atomically(self.environment, json.dumps(facts, indent=2).encode())

    def save_results(self, results: dict[str, Any]) -> None:
        """Write scores."""
        write_atomically(self.results, json.dumps(results, indent=2, ensure_ascii=False).encode())

    def save_weights(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        """Write weights under our own names, and the tokenizer beside them."""
        tensors = {
            name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()
        }
        write_atomically(self.tokenizer, tokenizer.to_str(pretty=True).encode())
        write_atomically(self.weights, safetensors.torch.save(tensors, {"format": "pt"}))

    def load_weights(self, model: nn.Module) -> None:
        """Read weights into a model of the same composition.

        Raises:
            CheckpointError: no such file, truncated, or of another composition; names the file.
        """
        if not self.weights.is_file():
            raise CheckpointError(
                f"{self.path} holds no weights ({self.weights.relative_to(self.path)} is missing): "
                "not a run folder, or the run has not finished"
            )
        try:
            tensors = safetensors.torch.load_file(self.weights)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.weights}: truncated or damaged ({error})") from error
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{self.weights}: {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: to a sibling, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
