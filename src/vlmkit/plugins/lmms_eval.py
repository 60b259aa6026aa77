"""Entry point of the group `lmms_eval.models`: lmms-eval finds vlmkit's models by itself.

lmms_eval --model vlmkit --model_args run=<run folder> --tasks mme
"""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MODEL_ID = "vlmkit"


def manifest() -> ModelManifest:
    """What lmms-eval is to know before it loads a model."""
    return ModelManifest(
        model_id=MODEL_ID, chat_class_path="vlmkit.plugins.lmms_eval_model.LmmsEvalModel"
    )
