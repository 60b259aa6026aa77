"""Prefill, decoding, sampling and scoring: one prompt as a stream, a few at once, or any number."""

from vlmkit.models.generation.answer import Answer
from vlmkit.models.generation.engine import Budget, Engine
from vlmkit.models.generation.loop import generate, generate_batch, generate_text
from vlmkit.models.generation.many import Progress, generate_many
from vlmkit.models.generation.prefill import pack_prompts, prefill
from vlmkit.models.generation.request import (
    Decoding,
    FinishReason,
    Generated,
    Request,
    TokenLogprob,
)
from vlmkit.models.generation.sampling import Sampling
from vlmkit.models.generation.score import Score, score
from vlmkit.models.generation.step import DecodeStep

__all__ = [
    "Answer",
    "Budget",
    "DecodeStep",
    "Decoding",
    "Engine",
    "FinishReason",
    "Generated",
    "Progress",
    "Request",
    "Sampling",
    "Score",
    "TokenLogprob",
    "generate",
    "generate_batch",
    "generate_many",
    "generate_text",
    "pack_prompts",
    "prefill",
    "score",
]
