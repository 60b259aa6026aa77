"""Ask a trained model: text, images and videos in, an answer out as it is written.

python -m vlmkit.generate run=runs/2026-01-01/12-00-00 image=cat.png prompt="What is this?"
python -m vlmkit.generate checkpoint=<folder or hub id> video=clip.mp4 prompt="What happens?"
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
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
from vlmkit.models.generation import Sampling, generate
from vlmkit.models.qwen3vl import Qwen3VL


@entry_point("generate", free_text=("prompt", "system", "image", "video"))
def main(config: DictConfig) -> None:
    """Answer one prompt."""
    sampling: Sampling = build(config.sampling)
    conversation = conversation_of(config)
    model, processor = load(config)
    prompt = collate_prompt(conversation, processor).to(next(model.parameters()).device)
    tokens = generate(
        model,
        prompt,
        max_new_tokens=config.max_new_tokens,
        sampling=sampling,
        prefill_chunk=config.prefill_chunk,
    )
    for text in stream_text(processor.tokenizer, tokens):
        print(text, end="", flush=True)
    print()


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
    from vlmkit.pretrained import load_pretrained, load_processor, parse_dtype
    from vlmkit.runs import load_run

    if (config.run is None) == (config.checkpoint is None):
        raise ConfigError("give either run=<run folder> or checkpoint=<folder or hub id>")
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = parse_dtype(config.dtype)
    if config.run is not None:
        run = load_run(config.run, device=device)
        return run.model.to(dtype), run.processor
    model = load_pretrained(config.checkpoint, dtype=dtype, device=device)
    return model.eval(), load_processor(config.checkpoint)


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Decode as tokens arrive; a character of several tokens is held back until it is whole."""
    seen: list[int] = []
    written = 0
    for token in tokens:
        seen.append(token)
        text = tokenizer.decode(seen, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[written:]
            written = len(text)
    text = tokenizer.decode(seen, skip_special_tokens=True)
    if text[written:]:
        yield text[written:]


def _paths(value: Any) -> list[Path]:
    """One path, a list of paths, or none."""
    if value is None:
        return []
    return [Path(str(item)) for item in ([value] if isinstance(value, str) else value)]


if __name__ == "__main__":
    main()
