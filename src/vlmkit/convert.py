"""Weights, rewritten: a published checkpoint or a run in, a published checkpoint out.

    python -m vlmkit.convert input=<folder or hub repository> output=<folder>
    python -m vlmkit.convert run=<run folder> output=<folder>

Whatever published layout comes in, what goes out is the layout of the released checkpoints: its key
set, its config keys, and stacked experts as the hub has them. A run brings its own pixel budgets and
frame sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from vlmkit.build import build_model, entry_point
from vlmkit.checkpoint.own_weights import OwnWeights
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.checkpoint.save import save_checkpoint
from vlmkit.data.processor import Processor
from vlmkit.errors import ConfigError
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import checkpoint_folder, load_pretrained, parse_dtype
from vlmkit.runs import build_processor, read_config


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be written, wherever it came from."""

    model: Qwen3VL
    processor: Processor | None = None  # whose tokenizer and settings are written
    companions: Path | None = None  # folder whose tokenizer, template and settings are carried over
    read: Callable[[str], Tensor] | None = None  # gives the values of a model on meta, by parameter


def from_published(source: str | Path, dtype: torch.dtype | None = None) -> Source:
    """Read a checkpoint in any published layout.

    Args:
        source: a folder or a hub repository.
        dtype: of the result; None keeps the stored one.
    """
    folder = checkpoint_folder(source)
    return Source(model=load_pretrained(folder, dtype=dtype), companions=folder)


def from_run(folder: str | Path, dtype: torch.dtype | None = None) -> Source:
    """What `python -m vlmkit.train` has written; weights are read when they are written, file by file.

    Args:
        folder: of the run.
        dtype: of the result; None keeps the stored one.
    """
    files = RunFolder(folder)
    config = read_config(files)
    model = build_model(config=config, device="meta")
    read = OwnWeights(files.newest_weights(), model)
    model.to(dtype)
    return Source(model=model, processor=build_processor(config, files), read=read)  # type: ignore[arg-type]


def write(
    source: Source, output: str | Path, max_shard_gb: float = 5.0, overwrite: bool = False
) -> None:
    """Write it in the layout of the released checkpoints; all of it or nothing."""
    save_checkpoint(
        source.model,
        output,
        max_shard_gb=max_shard_gb,
        overwrite=overwrite,
        companions=source.companions,
        processor=source.processor,
        read=source.read,
    )


@entry_point("convert")
def main(config: DictConfig) -> None:
    """Read, then write."""
    if (config.input is None) == (config.run is None) or config.output is None:
        raise ConfigError(
            "give input=<folder or hub repository> or run=<run folder>, and output=<folder>"
        )
    dtype = parse_dtype(config.dtype)
    source = from_run(config.run, dtype) if config.run else from_published(config.input, dtype)
    write(source, config.output, config.max_shard_gb, config.overwrite)
    count = sum(parameter.numel() for parameter in source.model.parameters())
    Console().print(f"{config.output}: {count:,} parameters written")


if __name__ == "__main__":
    main()
