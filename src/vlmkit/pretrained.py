"""Published Qwen3-VL checkpoints in and out: `load_pretrained` and `save_pretrained`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from tokenizers import Tokenizer

from vlmkit.build import build, build_model, compose_config
from vlmkit.checkpoint.chat_template import template_overrides
from vlmkit.checkpoint.files import CONFIG, DTYPES, read_json
from vlmkit.checkpoint.load import load_weights
from vlmkit.checkpoint.published import overrides_from_published
from vlmkit.checkpoint.published_processor import processor_overrides
from vlmkit.checkpoint.save import save_checkpoint
from vlmkit.data.processor import Processor
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.models.qwen3vl import Qwen3VL

TOKENIZER = "tokenizer.json"
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]


def load_pretrained(
    source: str | Path,
    *overrides: str,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    **parts: Any,
) -> Qwen3VL:
    """A model from a published checkpoint, dense or mixture of experts, in evaluation mode.

    Weights are streamed from safetensors into a model that starts on meta: peak memory is the model and
    one tensor.

    Args:
        source: a folder, or the name of a repository on the Hugging Face hub.
        overrides: applied after the checkpoint's own numbers, such as `"attention=flash"`.
        dtype: of the parameters, such as `torch.bfloat16` or `"bfloat16"`; None keeps the stored one.
        device: where the model goes.
        parts: built parts that replace the checkpoint's by name, such as `fusion=MyFusion()`. They keep
            their weights, cast to the dtype of the others, and the checkpoint's weights for that part
            stay unread.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of a kind that vlmkit does not support.
        ConfigError: an override or a part does not fit.
    """
    wanted = parse_dtype(dtype)
    folder = checkpoint_folder(source)
    own = published_overrides(folder)
    try:
        config = compose_config(*own, *overrides)
        model = build_model(config=config, device="meta", dtype=wanted, **parts)
    except ConfigError as error:
        if overrides or parts:
            raise
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    assert isinstance(model, Qwen3VL)
    load_weights(model, folder, device=device, dtype=wanted, leave_out=parts)
    return model.eval()


def save_pretrained(
    model: Qwen3VL,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    max_shard_gb: float = 5.0,
    overwrite: bool = False,
    processor: Processor | None = None,
) -> None:
    """Write a model in the layout of the released checkpoints, for transformers, vLLM and SGLang.

    The folder appears complete or not at all.

    Args:
        model: with values, in the dtype that is to be stored.
        folder: made; refused if it holds something, unless `overwrite` and it is a checkpoint.
        tokenizer: written with the chat template; None takes the processor's. Without either, the Qwen3
            tokenizer is written if the model has its full vocabulary, and none otherwise.
        max_shard_gb: largest file of weights, in 10^9 bytes.
        overwrite: replace a checkpoint that is there.
        processor: what the model was trained with, such as `load_run(...).processor`: its pixel budgets,
            frame sampling and chat template are written. None writes the released ones, for Instruct.

    Raises:
        CheckpointError: the published layout cannot express the model or the processor, or the folder
            cannot be written.
    """
    save_checkpoint(model, folder, tokenizer, max_shard_gb, overwrite, processor=processor)


def load_processor(source: str | Path, *overrides: str) -> Processor:
    """What turns conversations into examples for a published checkpoint.

    Its own tokenizer, pixel budgets and frame sampling; turns are written as for the Instruct or the
    Thinking models, whichever its chat template does. Where that does neither: as for Instruct, with a
    warning.

    Args:
        source: a folder, or the name of a repository on the Hugging Face hub.
        overrides: applied after the checkpoint's own settings, such as `"temporal=text_hms"`.

    Raises:
        CheckpointError: the folder has no tokenizer, or a setting that vlmkit does not support.
        ConfigError: an override does not fit.
    """
    folder = checkpoint_folder(source)
    own = [
        *published_overrides(folder),
        *processor_overrides(folder),
        *template_overrides(folder),
    ]
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(f"{folder / TOKENIZER} is missing: the folder holds no tokenizer")
    node = compose_config(*own, *overrides).processor
    node.tokenizer = {"_target_": "vlmkit.data.tokenizer.load_tokenizer", "path": str(folder)}
    try:
        processor: Processor = build(node)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return processor


def published_overrides(folder: Path) -> list[str]:
    """The overrides that compose the model of a checkpoint folder.

    Raises:
        CheckpointError: config.json is missing or asks for what vlmkit does not support; names the key.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: give the folder that holds {CONFIG}")
    config = read_json(folder / CONFIG)
    try:
        return overrides_from_published(config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def checkpoint_folder(source: str | Path) -> Path:
    """A local folder as it is; a hub repository downloaded: settings, safetensors and tokenizer only.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such repository or is out of reach.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise CheckpointError(f"{source}: there is no such folder")
    try:
        return Path(snapshot_download(str(source), allow_patterns=DOWNLOADED))
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{source}: there is no such folder, and it could not be fetched from the hub ({reason}). "
            "Offline, download it elsewhere (`hf download`) and give the folder."
        ) from error


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by name.

    Raises:
        ConfigError: there is no such dtype; names those there are.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    names = {str(known).removeprefix("torch."): known for known in DTYPES.values()}
    if dtype not in names:
        raise ConfigError(f"dtype={dtype}: choose one of {', '.join(names)}")
    return names[dtype]
