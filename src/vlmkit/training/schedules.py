"""Learning-rate schedules: a linear warm-up, then a shape."""

from __future__ import annotations

import logging
import math
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlmkit.errors import ConfigError

log = logging.getLogger(__name__)


class Shape(Protocol):
    """What follows the warm-up."""

    def __call__(self, step: int, first: int, total: int) -> float:
        """Learning rate of `step` relative to the peak.

        Args:
            step: from `first` on.
            first: step after the warm-up.
            total: steps of the run.
        """
        ...


class Constant:
    """The peak, to the end."""

    def __call__(self, step: int, first: int, total: int) -> float:
        """See `Shape`."""
        return 1.0


class Cosine:
    """Half a cosine from the peak down to `final_share` of it."""

    def __init__(self, final_share: float = 0.1) -> None:
        self.final_share = _share("final_share", final_share)

    def __call__(self, step: int, first: int, total: int) -> float:
        """See `Shape`."""
        progress = min((step - first) / max(total - first, 1), 1.0)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress))


class StableDecay:
    """The peak, then a decay over the last share of the run (WSD: MiniCPM, arXiv 2404.06395).

    The decay is `1 - progress ** power`: power 1 is linear; 0.5 is 1-sqrt, the best of those that
    Hägele et al. compare (arXiv 2405.18392). A run is lengthened from any checkpoint before the decay.
    """

    def __init__(
        self, decay_share: float = 0.2, final_share: float = 0.0, power: float = 0.5
    ) -> None:
        """Keep the numbers.

        Args:
            decay_share: of the whole run, warm-up included.
            final_share: learning rate at the end relative to the peak.
            power: of the decay.

        Raises:
            ConfigError: a share outside 0..1, or a power that is not positive.
        """
        if power <= 0:
            raise ConfigError(f"schedule.shape.power must be positive, got {power}")
        self.decay_share = _share("decay_share", decay_share)
        self.final_share = _share("final_share", final_share)
        self.power = power

    def __call__(self, step: int, first: int, total: int) -> float:
        """See `Shape`."""
        length = max(round(self.decay_share * total), 1)
        start = max(total - length, first)
        progress = min(max(step - start, 0) / max(total - start, 1), 1.0)
        return 1 - (1 - self.final_share) * progress**self.power


class WarmupSchedule(LambdaLR):
    """Scales all learning rates alike: a linear warm-up, then `shape`.

    A function of the step alone, which is also all that its state holds beside the base rates.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, shape: Shape, warmup_steps: float = 0
    ) -> None:
        """Scale the first step's learning rates.

        Args:
            optimizer: whose learning rates are scaled.
            total_steps: length of the run; -1 if it has no end.
            shape: what follows the warm-up.
            warmup_steps: steps of the linear rise; below 1, a share of the run. As many as the run or
                more are cut to a tenth of it, with a warning.

        Raises:
            ConfigError: the warm-up is negative, or the schedule needs the length of an endless run.
        """
        if warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps must not be negative, got {warmup_steps}")
        endless = total_steps < 0
        if endless and (0 < warmup_steps < 1 or not isinstance(shape, Constant)):
            raise ConfigError(
                "the schedule depends on the length of the run: set trainer.max_steps, or use "
                "schedule=constant with schedule.warmup_steps in whole steps"
            )
        rise = round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)
        if rise >= total_steps and not endless:
            shorter = total_steps // 10
            log.warning(
                "schedule.warmup_steps %d is not less than the run's %d steps: warming up for %d",
                rise,
                total_steps,
                shorter,
            )
            rise = shorter

        def share(step: int) -> float:
            return (step + 1) / rise if step < rise else shape(step, rise, total_steps)

        super().__init__(optimizer, share)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a step, at the rates that this run is configured with and in its length."""
        kept = {key: value for key, value in state_dict.items() if key != "base_lrs"}
        super().load_state_dict(kept)
        rates = [rate * self.lr_lambdas[0](self.last_epoch) for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"schedule.shape.{name} must lie in 0..1, got {value}")
    return value
