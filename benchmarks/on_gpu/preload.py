"""Imported once, before cases are forked off: nothing here may start CUDA."""

import contextlib

import benchmarks.on_gpu.worker  # noqa: F401

with contextlib.suppress(ImportError):  # the rest goes on without it
    import transformers.models.qwen3_vl.modeling_qwen3_vl
    import transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe  # noqa: F401
with contextlib.suppress(ImportError):
    import peft  # noqa: F401
