"""Run folders -> objects: what a notebook needs to look at a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from vlmkit.build import build, build_model
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.data.processor import Processor
from vlmkit.data.tokenizer import load_tokenizer
from vlmkit.errors import CheckpointError
from vlmkit.initialization import materialize
from vlmkit.models.qwen3vl import Qwen3VL


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    folder: RunFolder
    config: DictConfig
    model: Qwen3VL
    processor: Processor


def load_run(folder: str | Path, device: torch.device | str = "cpu") -> Run:
    """Rebuild a run from its own config and weights.

    Args:
        folder: what `python -m vlmkit.train` has written.
        device: where the model goes.

    Raises:
        CheckpointError: the folder is not a run, or its weights are damaged.
    """
    files = RunFolder(folder)
    config = read_config(files)
    model = build_model(
        config=config, device="meta"
    )  # the weights come from the run, not from `init`
    assert isinstance(model, Qwen3VL)
    materialize(model, device)
    files.load_weights(model)
    processor = build_processor(config, files)
    return Run(folder=files, config=config, model=model.eval(), processor=processor)


def read_config(files: RunFolder) -> DictConfig:
    """The config of a run, finished or not.

    Raises:
        CheckpointError: the folder is not a run.
    """
    if not files.config.is_file():
        raise CheckpointError(f"{files.path} is not a run folder: it has no {files.config.name}")
    config = OmegaConf.load(files.config)
    assert isinstance(config, DictConfig)
    return config


def build_processor(config: DictConfig, files: RunFolder | None = None) -> Processor:
    """The processor of a config; with the run's own tokenizer where there is one."""
    processor: Processor = build(config.processor)
    if files is not None and files.tokenizer.is_file():
        processor.tokenizer = load_tokenizer(files.tokenizer)
    return processor
