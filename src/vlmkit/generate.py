"""Ask a trained model: text, images and videos in, an answer out as it is written.

python -m vlmkit.generate run=runs/2026-01-01/12-00-00 image=cat.png prompt="What is this?"
python -m vlmkit.generate checkpoint=<folder or hub id> video=clip.mp4 prompt="What happens?"
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from vlmkit.build import build, entry_point
from vlmkit.data.collate import collate_prompt
from vlmkit.data.media import ImageFile, VideoFile
from vlmkit.data.processor import Processor
from vlmkit.data.record import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    VideoPart,
)
from vlmkit.errors import ConfigError
from vlmkit.models.generation import (
    Budget,
    Decoding,
    Generated,
    Request,
    Sampling,
    generate_text,
)
from vlmkit.models.qwen3vl import Qwen3VL


@entry_point("generate", free_text=("prompt", "system", "image", "video", "stop"))
def main(config: DictConfig) -> None:
    """Answer one prompt."""
    decoding, budget = decoding_of(config), budget_of(config)
    conversation = conversation_of(config)
    model, processor = load(config)
    request = Request(prompt=collate_prompt(conversation, processor), decoding=decoding)
    tokenizer = processor.tokenizer
    for made in generate_text(model, request, tokenizer, prefill_tokens=budget.prefill_tokens):
        if isinstance(made, str):
            print(made, end="", flush=True)
        else:
            print()
            print_logprobs(made, tokenizer)


def decoding_of(config: DictConfig) -> Decoding:
    """How the answer is made.

    Raises:
        ConfigError: a setting is out of range; names it.
    """
    sampling: Sampling = build(config.sampling)
    try:
        return Decoding(
            max_new_tokens=config.max_new_tokens,
            sampling=sampling,
            stop=_sequence(config.stop) or (),
            stop_ids=_sequence(config.stop_ids),
            top_logprobs=config.top_logprobs,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _sequence(value: Any) -> Any:
    """A list, or one value in place of a list of one."""
    if OmegaConf.is_list(value):
        return OmegaConf.to_container(value)
    return value if value is None else [value]


def budget_of(config: DictConfig) -> Budget:
    """How much of the prompt is read at once.

    Raises:
        ConfigError: it is not a number of tokens.
    """
    try:
        return Budget(max_rows=1, kv_tokens=None, prefill_tokens=config.prefill_tokens)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def print_logprobs(made: Generated, tokenizer: Tokenizer) -> None:
    """One line per token, with the alternatives, if log-probabilities were asked for."""
    if made.logprobs is None:
        return
    table = Table("token", "log-probability", "most probable", box=None)
    for token, found in zip(made.token_ids, made.logprobs, strict=True):
        top = ", ".join(f"{_shown(tokenizer, other)} {value:.3f}" for other, value in found.top)
        table.add_row(*map(Text, (_shown(tokenizer, token), f"{found.logprob:.3f}", top)))
    console = Console()
    console.print(table)
    console.print(f"finish_reason: {made.finish_reason}", highlight=False)


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizer.decode([token], skip_special_tokens=False))


def conversation_of(config: DictConfig) -> Conversation:
    """The user turn: media in the order images, videos, then the prompt.

    Raises:
        ConfigError: there is nothing to ask, or a file does not exist.
    """
    images, videos = _paths(config.image), _paths(config.video)
    if config.prompt is None:
        raise ConfigError('say what to ask: prompt="What is this?"')
    for path in (*images, *videos):
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such file")
    parts: list[Part] = [ImagePart(ImageFile(path)) for path in images]
    parts += [VideoPart(VideoFile(path)) for path in videos]
    messages = [Message(role="user", parts=(*parts, TextPart(str(config.prompt))))]
    if config.system is not None:
        messages.insert(0, Message(role="system", parts=(TextPart(str(config.system)),)))
    return Conversation(messages=tuple(messages))


def load(config: DictConfig) -> tuple[Qwen3VL, Processor]:
    """The model and processor of a run, or of a published checkpoint.

    Raises:
        ConfigError: neither or both are given.
        CheckpointError: the folder is not what it should be.
    """
    from vlmkit.runs import load_model_and_processor

    return load_model_and_processor(
        run=config.run, checkpoint=config.checkpoint, device=config.device, dtype=config.dtype
    )


def _paths(value: Any) -> list[Path]:
    """One path, a list of paths, or none."""
    if value is None:
        return []
    return [Path(str(item)) for item in ([value] if isinstance(value, str) else value)]


if __name__ == "__main__":
    main()
