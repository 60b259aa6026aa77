"""Which models and losses a layout can divide: one set of rules, for those who divide and those who plan."""

from __future__ import annotations

from vlmkit.losses.base import Loss
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.parallel import context, expert, pipeline_stage, tensor, vocab_parallel
from vlmkit.training.parallel.layout import Layout


def check_layout(layout: Layout, model: Qwen3VL, loss: Loss) -> None:
    """Refuse what cannot be divided. Sizes that go with no model at all are refused by `Layout`.

    Args:
        layout: whose sizes are all given.
        model: whole; may be on meta. Frozen as it will be, with adapters.
        loss: of the run.

    Raises:
        ConfigError: names the axis, what does not divide along it, and the remedy.
    """
    tensor.check(model, layout.tensor)
    context.check(model, layout)
    expert.check(model, layout)
    if layout.pipeline > 1:
        pipeline_stage.plan_stages(model, layout)
    vocab_parallel.check_loss(loss, layout.tensor)
    context.check_loss(loss, layout)
