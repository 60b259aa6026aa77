"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave norms, biases, embeddings and position tables alone."""
    spared: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or name == "bias" or isinstance(module, nn.Embedding):
                spared.add(id(parameter))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class WarmupCosine(LambdaLR):
    """Linear warm-up, then a cosine down to `final_share` of the peak.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: length of the run.
        warmup_steps: steps of the linear rise.
        final_share: learning rate of the last step relative to the peak.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int, final_share: float = 0.1
    ) -> None:
        if warmup_steps >= total_steps:
            shorter = total_steps // 10
            log.warning(
                "optim.scheduler.warmup_steps %d is not less than the run's %d steps: warming up for %d",
                warmup_steps,
                total_steps,
                shorter,
            )
            warmup_steps = shorter

        def share(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
            return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, share)
