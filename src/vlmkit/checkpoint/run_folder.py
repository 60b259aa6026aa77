"""A run on disk: whole config, environment, metrics, weights, plots."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from vlmkit.checkpoint.folder import CheckpointFolder, writing_checkpoint
from vlmkit.checkpoint.later_tensor import AnyTensor
from vlmkit.checkpoint.own_weights import fill_from_own
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.errors import CheckpointError

TOKENIZER = "tokenizer.json"
WEIGHTS = "model"  # stem of the files


class RunFolder:
    """Names of the files in a run, and reading and writing them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.what_ran = self.path / "what_ran.json"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.resumable_config = self.path / "resume.yaml"  # with its interpolations
        self.checkpoints = self.path / "checkpoints"  # of training, by step
        self.weights = self.path / "checkpoint"  # of the finished run
        self.tokenizer = self.weights / TOKENIZER
        self.plots = self.path / "plots"

    @property
    def is_finished(self) -> bool:
        """Whether the run has trained all its steps and left its weights."""
        return self.weights.is_dir()

    def read_results(self) -> dict[str, Any]:
        """Scores so far."""
        if not self.results.is_file():
            return {}
        found: dict[str, Any] = json.loads(self.results.read_text())
        return found

    def save_results(self, **results: Any) -> None:
        """Write scores, beside those that are there."""
        every = {**self.read_results(), **results}
        write_atomically(self.results, json.dumps(every, indent=2, ensure_ascii=False).encode())

    def forget_metrics_from(self, step: int) -> None:
        """Drop lines of steps that are going to be trained again."""
        if self.metrics.is_file():
            lines = self.metrics.read_text().splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step
            ]
            write_atomically(self.metrics, "".join(kept).encode())

    def save_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keep what the run's token ids mean, before there are any weights."""
        write_atomically(self.path / TOKENIZER, tokenizer.to_str(pretty=True).encode())

    def export(self, weights: Mapping[str, AnyTensor], step: int) -> None:
        """Write the weights of the finished run, with the tokenizer beside them, and read them back.

        Args:
            weights: by name. Where they are divided over ranks one rank calls this, the others `give_parts`.
            step: optimiser steps taken.

        Raises:
            CheckpointError: they cannot be written, or do not read as they were written.
        """
        with writing_checkpoint(self.weights, step) as writer:
            writer.write_tensors(WEIGHTS, weights)
            shutil.copyfile(self.path / TOKENIZER, writer.folder / TOKENIZER)
        CheckpointFolder(self.weights).verify()

    def load_weights(self, model: nn.Module) -> None:
        """Read weights into a model of the same composition: the run's, or those of its newest checkpoint.

        Raises:
            CheckpointError: there are none, or they are damaged or of another composition; names the file.
        """
        fill_from_own(model, self.newest_weights())

    def newest_weights(self) -> Path:
        """The folder that holds them.

        Raises:
            CheckpointError: there are none.
        """
        if self.is_finished:
            return CheckpointFolder(self.weights).verify().path
        if (newest := CheckpointStore(self.checkpoints).newest()) is not None:
            return newest.path
        raise CheckpointError(
            f"{self.path} holds no weights: neither {self.weights.name}/ nor a complete checkpoint in "
            f"{self.checkpoints.name}/. Is it a run folder that has trained long enough to save?"
        )


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
