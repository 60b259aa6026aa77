"""A run folder as training leaves it, without the training."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf

from tests.conftest import spread
from vlmkit.build import build_model, compose_config
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.runs import build_processor


def save_run(folder: Path, *overrides: str) -> Path:
    """Write the config and weights of a tiny quickstart run, and return its folder."""
    config = compose_config("model=qwen3vl_tiny", f"run_dir={folder}", *overrides)
    files = RunFolder(folder)
    folder.mkdir()
    OmegaConf.save(config, files.config, resolve=True)
    torch.manual_seed(0)
    files.save_tokenizer(build_processor(config).tokenizer)
    files.export(spread(build_model(config=config)).state_dict(), step=0)
    return folder
