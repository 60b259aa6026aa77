"""Lets a model answer a few held-out questions, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.collate import collate_prompt
from vlmkit.data.order.mixture import Source
from vlmkit.data.processor import Processor
from vlmkit.data.record import Conversation, ImagePart, VideoPart
from vlmkit.evaluation.plots import Answered
from vlmkit.models.generation import Sampling, generate
from vlmkit.models.qwen3vl import Qwen3VL


def answer(
    model: Qwen3VL, processor: Processor, conversation: Conversation, max_new_tokens: int = 48
) -> str:
    """The model's greedy answer to a conversation that ends with a question."""
    device = next(model.parameters()).device
    prompt = collate_prompt(conversation, processor).to(device)
    tokens = generate(model, prompt, max_new_tokens=max_new_tokens, sampling=Sampling())
    return processor.tokenizer.decode(list(tokens), skip_special_tokens=True)


def answer_samples(
    model: Qwen3VL, processor: Processor, sources: Mapping[str, Source], per_source: int
) -> list[Answered]:
    """Answer the first questions of each source, first all firsts, then all seconds, ...

    A video is shown by its middle frame.
    """
    was_training = model.training
    model.eval()
    answered = []
    for i in range(per_source):
        for name, source in sources.items():
            if i >= len(source):
                continue
            sample = source[i]
            answered.append(
                Answered(
                    picture=_picture(sample, processor),
                    source=name,
                    question=sample.question,
                    answer=sample.answer,
                    prediction=answer(model, processor, sample.as_prompt()),
                )
            )
    model.train(was_training)
    return answered


def _picture(conversation: Conversation, processor: Processor) -> NDArray[np.uint8]:
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, ImagePart):
                return np.asarray(part.image.open())
            if isinstance(part, VideoPart):
                reader = processor.video.open_reader(part.video)
                middle = ((part.start_s or 0.0) + (part.end_s or reader.duration_s)) / 2
                return reader.get([int(np.abs(reader.pts_s - middle).argmin())])[0]
    return np.full((64, 64, 3), 255, dtype=np.uint8)
