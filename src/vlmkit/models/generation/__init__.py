"""Prefill, decoding and sampling: one prompt as a stream, or many at once."""

from vlmkit.models.generation.loop import generate, generate_batch
from vlmkit.models.generation.prefill import pack_prompts, prefill
from vlmkit.models.generation.sampling import Sampling
from vlmkit.models.generation.step import DecodeStep

__all__ = ["DecodeStep", "Sampling", "generate", "generate_batch", "pack_prompts", "prefill"]
