"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vlmkit.errors import ConfigError


class WeightAverage(L.Callback):
    """Averages the trained weights in float32, scores validation with them and leaves them at the end.

    Lightning's `EMAWeightAveraging` keeps averages in the dtype of the weights: in bfloat16, whose steps
    are 1/256, a decay of 0.999 never moves them. It also copies frozen weights and all else in the module.

    The averages are in this callback's state, so a resumed run goes on with them. Checkpoints hold the
    weights of the run itself; what is exported after training are the averages.
    """

    def __init__(
        self, decay: float = 0.999, warmup: bool = True, validate_with_average: bool = True
    ) -> None:
        """Keep the settings.

        Args:
            decay: share of the old average in the new one.
            warmup: whether update n uses no more than (1 + n) / (10 + n), so that the start is forgotten.
            validate_with_average: whether validation during training sees the averages.

        Raises:
            ConfigError: the decay is not within 0..1.
        """
        if not 0 <= decay < 1:
            raise ConfigError(
                f"callbacks.averaging.decay must be at least 0 and below 1, got {decay}"
            )
        self.decay, self.warmup = decay, warmup
        self.validate_with_average = validate_with_average
        self.averages: dict[str, Tensor] = {}
        self.num_updates = 0
        self._last_step = 0
        self._own: dict[str, Tensor] = {}  # weights of the run while the averages stand in for them

    def update(self, model: nn.Module) -> None:
        """Take in the model's weights."""
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in self._trained(model):
            average = self.averages[name]
            average.lerp_(parameter.detach().to(average.dtype), 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averages for the length of a `with` block."""
        self._put_in(model)
        try:
            yield
        finally:
            self._take_out(model)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the weights as they are, or take the averages of a resumed run to their device.

        Raises:
            ConfigError: the averages are of other parameters.
        """
        model = self._model(pl_module)
        trained = dict(self._trained(model))
        if self.averages and set(self.averages) != set(trained):
            differing = sorted(set(self.averages) ^ set(trained))
            raise ConfigError(
                f"the checkpoint's averages are of other parameters, such as {differing[0]}: train the "
                "same components, or start with averaging=none"
            )
        start = self.averages or trained
        self.averages = {
            name: start[name].detach().to(parameter.device, torch.float32, copy=True)
            for name, parameter in trained.items()
        }
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Update once per optimiser step."""
        if trainer.global_step > self._last_step:
            self.update(self._model(pl_module))
            self._last_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the averages in."""
        if trainer.state.fn == "fit" and self.validate_with_average:
            self._put_in(self._model(pl_module))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the run its own weights back."""
        self._take_out(self._model(pl_module))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Whoever saves now must find the run's own weights."""
        self._take_out(self._model(pl_module))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the averages in the model, after the last checkpoint."""
        self._put_in(self._model(pl_module))
        self._own = {}

    def state_dict(self) -> dict[str, Any]:
        """Averages by the parameters' names, and how many updates made them."""
        return {"averages": self.averages, "num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.averages = dict(state_dict["averages"])
        self.num_updates = state_dict["num_updates"]

    def _put_in(self, model: nn.Module) -> None:
        trained = dict(self._trained(model))
        if self._own or not self.averages:
            return
        self._own = {name: parameter.detach().clone() for name, parameter in trained.items()}
        _copy(self.averages, trained)

    def _take_out(self, model: nn.Module) -> None:
        own, self._own = self._own, {}
        if own:
            _copy(own, dict(self._trained(model)))

    @staticmethod
    def _model(module: L.LightningModule) -> nn.Module:
        return module.model  # type: ignore[return-value]

    @staticmethod
    def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@torch.no_grad()
def _copy(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
