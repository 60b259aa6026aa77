"""Writes a model as a published checkpoint: weights in shards, config, processors, tokenizer."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from vlmkit.checkpoint.atomic import atomic_folder
from vlmkit.checkpoint.chat_template import published_template
from vlmkit.checkpoint.files import CONFIG, INDEX, WEIGHTS
from vlmkit.checkpoint.key_map import TensorEntry, published_entries
from vlmkit.checkpoint.published_config import published_config
from vlmkit.checkpoint.published_processor import (
    processor_configs,
    released_configs,
    split_configs,
)
from vlmkit.checkpoint.side_files import (
    CHAT_TEMPLATE_FILES,
    SETTINGS_FILES,
    TOKENIZER_FILES,
    generation_config,
    tokenizer_config,
)
from vlmkit.data.processor import Processor
from vlmkit.data.template import ChatTemplate, InstructTemplate
from vlmkit.errors import CheckpointError
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.sequence import SpecialTokens

log = logging.getLogger(__name__)


def save_checkpoint(
    model: Qwen3VL,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    max_shard_gb: float = 5.0,
    overwrite: bool = False,
    companions: Path | None = None,
    processor: Processor | None = None,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a folder that transformers, vLLM and SGLang load; all of it or nothing.

    Args:
        model: with values; nothing is cast, so choose its dtype before.
        folder: made; what is there already is kept until the new folder is complete.
        tokenizer: written with the chat template; None takes the processor's, without one the Qwen3
            tokenizer where the model has the full vocabulary, and writes none where it has a cut one.
        max_shard_gb: weights are split into files of at most this many 10^9 bytes.
        overwrite: whether a checkpoint that is there already may be replaced.
        companions: a checkpoint folder whose tokenizer, chat template, processor and generation settings
            are carried over as they are, where it has them.
        processor: what the model was trained with; its settings and its chat template are written. None
            writes the released settings and the template of the Instruct models.
        read: gives the values of a parameter by its name in the model, which may then be on meta; they are
            cast to the model's dtype. Never more than one file's are held. None: the model's own.

    Raises:
        CheckpointError: the published layout cannot say what the model or the processor does, the folder
            must not be replaced, or the disk refuses.
    """
    config = published_config(model)
    settings = _settings(model, config, processor, companions)
    if tokenizer is None and processor is not None:
        tokenizer = processor.tokenizer
    entries = published_entries(model)
    if read is None:
        if empty := [
            entry.ours for entry in entries.values() if model.get_parameter(entry.ours).is_meta
        ]:
            raise CheckpointError(f"{empty[0]} is on meta, it has no values to save")
        read = model.get_parameter
    _warn_where_readers_differ(config, entries.values())
    target = Path(folder)
    try:
        with atomic_folder(target, overwrite, known_by=CONFIG) as partial:
            _write_weights(model, list(entries.values()), read, partial, int(max_shard_gb * 1e9))
            _write_json(partial / CONFIG, config)
            carried = _carry_over(companions, partial, SETTINGS_FILES)
            for name, content in settings.items():
                if name not in carried:
                    _write_json(partial / name, content)
            template = InstructTemplate() if processor is None else processor.template
            _write_tokenizer(model.special_tokens, partial, tokenizer, template, companions)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error


def _write_weights(
    model: Qwen3VL,
    entries: list[TensorEntry],
    read: Callable[[str], Tensor],
    folder: Path,
    limit: int,
) -> None:
    shards: list[list[TensorEntry]] = [[]]
    total = filled = 0
    for entry in entries:
        size = model.get_parameter(entry.ours).nbytes
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
        total += size
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = WEIGHTS
        if len(shards) > 1:
            name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for entry in shard:
            values = read(entry.ours).detach().cpu().to(model.get_parameter(entry.ours).dtype)
            tensors[entry.published] = entry.to_published(values)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / INDEX, index)


def _settings(
    model: Qwen3VL,
    config: dict[str, Any],
    processor: Processor | None,
    companions: Path | None,
) -> dict[str, dict[str, Any]]:
    """Files of processor and generation settings, by name, where the companions do not have them."""
    if processor is not None:
        settings = processor_configs(processor)
    else:
        vision = config["vision_config"]
        settings = released_configs(
            patch_size=vision["patch_size"],
            temporal_patch_size=vision["temporal_patch_size"],
            merge_size=vision["spatial_merge_size"],
        )
    if companions is not None:
        settings |= split_configs(companions)
    generation = generation_config(model.special_tokens, model.decoder.vocab_size)
    return {**settings, "generation_config.json": generation}


def _write_tokenizer(
    special: SpecialTokens,
    folder: Path,
    tokenizer: Tokenizer | None,
    template: ChatTemplate,
    companions: Path | None,
) -> None:
    if tokenizer is None and companions is not None and (companions / TOKENIZER_FILES[0]).is_file():
        _carry_over(companions, folder, TOKENIZER_FILES)
    else:
        if tokenizer is None and special == SpecialTokens():
            from vlmkit.data.tokenizer import build_qwen_tokenizer

            tokenizer = build_qwen_tokenizer()
        if tokenizer is None:
            log.info("no tokenizer is written: the vocabulary is a cut one and none was given")
            return
        tokenizer.save(str(folder / TOKENIZER_FILES[0]))
        tokenizer.model.save(str(folder))  # vocab.json and merges.txt
        _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    if not _carry_over(companions, folder, CHAT_TEMPLATE_FILES):
        jinja = published_template(template)
        (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
        _write_json(folder / "chat_template.json", {"chat_template": jinja})


def _carry_over(source: Path | None, folder: Path, names: Iterable[str]) -> list[str]:
    """Copy the files that are there, and say which."""
    copied = []
    for name in names:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
            copied.append(name)
    return copied


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _warn_where_readers_differ(config: dict[str, Any], entries: Iterable[TensorEntry]) -> None:
    """Say where transformers would read a correct file as something else."""
    if not config["text_config"]["rope_scaling"]["mrope_interleaved"]:
        log.warning(
            "transformers 5 ignores mrope_interleaved=false: it would interleave this model"
        )
    square = [e.published for e in entries if e.transposed_shape == e.published_shape]
    if square:
        log.warning(
            "transformers 5 tells expert layouts by shape and would misread %s, which is square "
            "(hidden width equal to the expert width or twice that)",
            square[0],
        )
