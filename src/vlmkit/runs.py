"""Run folders -> objects: what a notebook needs to look at a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vlmkit.build import build, build_model, options_by_group, parse_value
from vlmkit.checkpoint.folder import CheckpointFolder
from vlmkit.checkpoint.load import load_weights
from vlmkit.checkpoint.manifest import MANIFEST
from vlmkit.checkpoint.own_weights import fill_from_own
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.data.processor import Processor
from vlmkit.data.tokenizer import load_tokenizer
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.initialization import materialize
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import checkpoint_folder, load_pretrained, load_processor, parse_dtype

_ABSENT = object()


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


def load_model_and_processor(
    *,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[Qwen3VL, Processor]:
    """The model, in evaluation mode, and the processor of a run, or of a published checkpoint.

    Args:
        run: a run folder,
        checkpoint: or a folder in the published layout, or the name of a repository on the hub.
        device: where the model goes; None: cuda where there is one, else cpu.
        dtype: of the parameters; None: as stored.

    Raises:
        ConfigError: neither or both are given, or there is no such dtype.
        CheckpointError: the folder is not what it should be.
    """
    if (run is None) == (checkpoint is None):
        raise ConfigError("give either run=<run folder> or checkpoint=<folder or hub id>")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = parse_dtype(dtype)
    if run is not None:
        found = load_run(run, device=device)
        return found.model.to(wanted), found.processor
    assert checkpoint is not None
    model = load_pretrained(checkpoint, dtype=wanted, device=device)
    return model.eval(), load_processor(checkpoint)


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


def resumed_config(folder: str | Path, overrides: Sequence[str]) -> DictConfig:
    """The config of a run to go on with, single keys changed.

    Args:
        folder: what `python -m vlmkit.train` has written.
        overrides: `key=value`, for keys that the config has.

    Raises:
        CheckpointError: the folder is not a run.
        ConfigError: an override names an option of a group, or a key that does not exist.
    """
    files = RunFolder(folder)
    read_config(files)
    config = OmegaConf.load(files.resumable_config)
    assert isinstance(config, DictConfig)
    groups = options_by_group()
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+")  # keys that the defaults do not have must be written with it
        if key in groups or not equals:
            raise ConfigError(
                f"{override}: a run goes on under its own config; only single keys can be changed, such "
                "as trainer.max_steps=2000"
            )
        if OmegaConf.select(config, key, throw_on_missing=False, default=_ABSENT) is _ABSENT:
            raise ConfigError(f"{key}: the run's config ({files.resumable_config}) has no such key")
        OmegaConf.update(config, key, OmegaConf.create({"value": parse_value(value)}).value)
    config.run_dir, config.resume = str(folder), True
    return config


def fill_from(model: nn.Module, source: str | Path, only: Sequence[str] = ("*",)) -> None:
    """Give a model the weights of a run, of a checkpoint of a run, or of a published checkpoint.

    Args:
        model: with storage.
        source: a folder, or the name of a repository on the Hugging Face hub.
        only: patterns of the names to take; published checkpoints are taken whole.

    Raises:
        CheckpointError: there are no such weights, they are damaged, or they do not fit the model.
    """
    files = RunFolder(source)
    if files.config.is_file():
        fill_from_own(model, files.newest_weights(), only)
    elif (files.path / MANIFEST).is_file():
        fill_from_own(model, CheckpointFolder(files.path).verify().path, only)
    else:
        if list(only) != ["*"]:
            raise ConfigError(
                f"start_from.only={list(only)}: {source} is a published checkpoint, and those are taken whole"
            )
        assert isinstance(model, Qwen3VL)
        load_weights(model, checkpoint_folder(source))


def build_processor(config: DictConfig, files: RunFolder | None = None) -> Processor:
    """The processor of a config; with the run's own tokenizer where there is one."""
    processor: Processor = build(config.processor)
    if files is not None and files.tokenizer.is_file():
        processor.tokenizer = load_tokenizer(files.tokenizer)
    return processor
