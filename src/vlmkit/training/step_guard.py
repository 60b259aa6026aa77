"""Stands between a gradient and the weights: judges, records what went wrong, goes back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from vlmkit.batch import StepBatch
from vlmkit.checkpoint.folder import SHARD_BYTES, writing_checkpoint
from vlmkit.checkpoint.later_tensor import give_parts
from vlmkit.checkpoint.run_folder import WEIGHTS
from vlmkit.errors import ConfigError
from vlmkit.training.checkpointing import Checkpointing
from vlmkit.training.parallel.whole import divided_state
from vlmkit.training.stepped_module import SteppedModule
from vlmkit.training.survival.guards import Guards
from vlmkit.training.survival.incidents import Incident, IncidentLog, digests
from vlmkit.training.survival.verdict import Verdict
from vlmkit.training.update import Gradient

log = logging.getLogger(__name__)


class StepGuard:
    """Asks the guards about each step, and does what they decide.

    Args:
        guards: judge by loss and gradient norm.
        incidents: keeps what a step can be taken again from: `python -m vlmkit.replay <file>`.
    """

    def __init__(self, guards: Guards, incidents: IncidentLog) -> None:
        self.guards, self.incidents = guards, incidents

    def judge(
        self, module: SteppedModule, batch: StepBatch, loss: Tensor, gradient: Gradient
    ) -> Verdict:
        """See `vlmkit.training.stepped_module.Guard`."""
        verdict = self.guards.judge(batch.step, float(loss), float(gradient.total))
        if verdict.reason is None:
            return verdict
        with module.sections("save"):
            path = self._record(module, batch, verdict.reason, loss, gradient)
        what = "applied" if verdict.apply else "not applied"
        log.warning("step %d is %s: %s (%s)", batch.step, what, verdict.reason, path)
        if verdict.roll_back is not None:
            with module.sections("save"):
                _go_back(module.trainer, verdict.roll_back)
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """See `vlmkit.training.stepped_module.Guard`."""
        return {"guards": self.guards.state_dict(), "incidents": self.incidents.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `vlmkit.training.stepped_module.Guard`."""
        self.guards.load_state_dict(state["guards"])
        self.incidents.load_state_dict(state["incidents"])

    def _record(
        self,
        module: SteppedModule,
        batch: StepBatch,
        reason: str,
        loss: Tensor,
        gradient: Gradient,
    ) -> Path | None:
        trainer = module.trainer
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        incident = Incident(
            step=batch.step,
            reason=reason,
            loss=float(loss),
            grad_norm=float(gradient.total),
            grad_norms={name: float(norm) for name, norm in gradient.by_component.items()},
            rank=module.ranks.sample_rank,
            world_size=module.ranks.num_sample_ranks,
            seed=module.seed,
            data_state=data.state_dict_before(batch.step) if data is not None else {},
            samples=[member for members in batch.members for member in members],
            digests=digests(batch),
        )

        def save_weights(path: Path) -> None:
            weights = divided_state(module.model)
            try:
                if trainer.is_global_zero:
                    with writing_checkpoint(path, batch.step) as writer:
                        writer.write_tensors(WEIGHTS, weights)
            finally:
                give_parts({WEIGHTS: weights}, SHARD_BYTES)

        return self.incidents.record(incident, save_weights)


def _go_back(trainer: L.Trainer, back: int) -> None:
    """Raises ConfigError where nothing keeps checkpoints to go back to."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    keepers = [callback for callback in callbacks if isinstance(callback, Checkpointing)]
    if not keepers:
        raise ConfigError(
            "guard=roll_back needs the checkpointing callback, and the run has none: say guard=skip"
        )
    keepers[0].restore(trainer, back)
