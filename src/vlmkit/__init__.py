"""vlmkit: Qwen3-VL as parts to swap, for research that can be trusted.

The names that a notebook needs. Each is imported on first use, so that `import vlmkit` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmkit.build import build_model, compose_config
    from vlmkit.models.hf_batch import batch_from_hf
    from vlmkit.pretrained import load_pretrained, load_processor, save_pretrained
    from vlmkit.runs import load_run

__version__ = "0.1.0"

_HOME = {
    "compose_config": "vlmkit.build",
    "build_model": "vlmkit.build",
    "load_run": "vlmkit.runs",
    "load_pretrained": "vlmkit.pretrained",
    "save_pretrained": "vlmkit.pretrained",
    "load_processor": "vlmkit.pretrained",
    "batch_from_hf": "vlmkit.models.hf_batch",
}

__all__ = [
    "batch_from_hf",
    "build_model",
    "compose_config",
    "load_pretrained",
    "load_processor",
    "load_run",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vlmkit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
