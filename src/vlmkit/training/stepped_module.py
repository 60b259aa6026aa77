"""What all training has in common: one call is one optimiser step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from vlmkit.batch import StepBatch
from vlmkit.training.rank_groups import RankGroups
from vlmkit.training.sections import Sections
from vlmkit.training.survival.verdict import Verdict
from vlmkit.training.update import Gradient, Update

Item = TypeVar("Item")


class Guard(Protocol):
    """Judges each step when its gradient is there, on all ranks alike."""

    def judge(
        self, module: SteppedModule, batch: StepBatch, loss: Tensor, gradient: Gradient
    ) -> Verdict:
        """Say what is to become of the step; what was to be saved or restored has been when it returns."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


class SteppedModule(L.LightningModule):
    """Trains a model step by step. Subclasses say what the gradient of a step is.

    A batch is a whole optimiser step of this rank (`StepBatch`). What is random in a step is seeded from
    (seed, step, rank), so that a resumed run draws what one that never stopped would have drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        update: Update,
        guard: Guard | None = None,
        sections: Sections | None = None,
        seed: int = 0,
    ) -> None:
        """Keep the parts, and freeze what is not to be trained.

        Args:
            model: what is trained.
            update: how the gradient of a step becomes an update of the weights.
            guard: decides which steps are applied; None applies all.
            sections: told what takes time.
            seed: of what is random within a step.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model, self.update, self.seed = model, update, seed
        self.guard, self.sections = guard, sections or Sections()
        update.freeze(model)

    @abstractmethod
    def accumulate_gradient(self, batch: StepBatch) -> Tensor:
        """Run all backward passes of the step.

        Returns:
            The loss of the step over all ranks, () float32, without gradient.
        """

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Gradient, verdict, update, log."""
        torch.manual_seed(seed_of_step(self.seed, batch.step, self.ranks.token_rank))
        loss = self.accumulate_gradient(batch)
        with self.sections("optimizer"):
            gradient = self.update.measure(self.ranks.stages)
            verdict = self.guard.judge(self, batch, loss, gradient) if self.guard else Verdict()
            numbers = self.update.apply(self.optimizers(), self.lr_schedulers(), gradient, verdict)
        self.log("train/loss", loss)
        self.log_dict({f"train/{key}": value for key, value in numbers.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the guard remembers."""
        if self.guard is not None:
            checkpoint["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give it back."""
        if self.guard is not None and "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])

    def in_step_with_other_ranks(
        self, items: tuple[Item, ...], most: int
    ) -> Iterator[tuple[Item, int]]:
        """This rank's items, each with 1; then its last with 0 until the busiest rank is done.

        A backward pass is a collective where weights are sharded, so all ranks must make equally many.
        Copies of the model exchange gradients in the last one only.

        Args:
            items: of this rank.
            most: number of items of the busiest rank, from `most_micro_batches`.
        """
        for i in range(most):
            with self._without_exchange() if i < most - 1 else nullcontext():
                yield items[min(i, len(items) - 1)], int(i < len(items))

    def most_micro_batches(self, batch: StepBatch) -> int:
        """The number of micro-batches of the busiest rank.

        Raises:
            RuntimeError: ranks disagree about what the step holds.
        """
        most = len(batch.micro_batches)
        if self.trainer.world_size == 1:
            return most
        mine = torch.tensor(
            [most, batch.rows_hash, -batch.rows_hash], dtype=torch.int64, device=self.device
        )
        most, largest, smallest = (int(value) for value in self.max_over_ranks(mine).tolist())
        if largest != -smallest:
            raise RuntimeError(
                f"step {batch.step}: the ranks have planned different rows, so samples would be lost "
                "or doubled. A file that cannot be read everywhere, or not in time, is the usual "
                "cause: compare the ranks' lists of skipped samples, or measure sizes once with "
                "python -m vlmkit.stats write_sizes=true"
            )
        return most

    @property
    def ranks(self) -> RankGroups:
        """Who takes the step with this rank."""
        return RankGroups.of(self.trainer)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Over the whole step, of what ranks have computed."""
        with self.sections("collective"):
            return self.ranks.sum(value)

    def sum_over_samples(self, value: Tensor) -> Tensor:
        """Over the whole step, of what each rank knows of its samples."""
        with self.sections("collective"):
            return self.ranks.sum_over_samples(value)

    def max_over_ranks(self, value: Tensor) -> Tensor:
        """The largest of all ranks' values."""
        with self.sections("collective"):
            reduced: Tensor = self.trainer.strategy.reduce(value, reduce_op="max")  # type: ignore[assignment]
        return reduced

    def configure_optimizers(self) -> Any:
        """See `Update.prepare`."""
        return self.update.prepare(self.model, self.trainer.max_steps)

    def _without_exchange(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        return (
            strategy.block_backward_sync()
            if isinstance(strategy, ParallelStrategy)
            else nullcontext()
        )


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """Of what is random within a step, on one rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
