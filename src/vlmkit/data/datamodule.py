"""Feeds the trainer: one item is the whole of one optimiser step on this rank."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vlmkit.batch import StepBatch
from vlmkit.child_signals import prepare_worker
from vlmkit.data.order.mixture import Mixture, Source, Weighted
from vlmkit.data.order.packing import deal, pack_all
from vlmkit.data.order.samples import Samples, Skipped
from vlmkit.data.order.skips import SkipLog
from vlmkit.data.order.steps import FixedRows, State, StepPlanner, StepRows, Ticket
from vlmkit.data.order.work import Sizes, TransformerWork
from vlmkit.data.patch_memory import empty_patches
from vlmkit.data.processor import Example, Plan, Processor
from vlmkit.data.rows import Rows
from vlmkit.data.sizes.settings_key import differences, plain
from vlmkit.data.sizes.size_table import is_measurable
from vlmkit.errors import CheckpointError, listed

logger = logging.getLogger(__name__)


class TrainingSteps(Dataset[StepBatch]):
    """Turns tickets into steps: rows of this rank, decoded and collated."""

    def __init__(
        self,
        samples: Samples,
        planner: StepPlanner,
        rows: Rows,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.samples, self.planner, self.rows = samples, planner, rows
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, ticket: Ticket) -> StepBatch:
        planned, rows, failed = self.load(ticket)
        # what headers tell is known to all ranks alike; each reports its share of it
        mine = [item for item in planned.skipped if item.index % self.world_size == self.rank]
        names = self.samples.mixture.names
        batch = self.rows.step_batch(
            ticket.step, rows, [*mine, *failed], self.samples.processor, names
        )
        return replace(batch, rows_hash=zlib.crc32(repr(planned.rows).encode()))

    def load(self, ticket: Ticket) -> tuple[StepRows, list[list[Example]], list[Skipped]]:
        """Rows of this rank with their samples decoded, and the samples that could not be."""
        planned = self.planner.rows(self.samples, ticket)
        failed: list[Skipped] = []
        rows: list[list[Example]] = []
        mine = deal(planned.costs, planned.vision, self.world_size)[self.rank]
        together = self.rows.rows_per_micro_batch
        for first in range(0, len(mine), together):
            numbers = mine[first : first + together]
            plans = [self._plans(planned, planned.rows[number], failed) for number in numbers]
            rows += self._decoded(plans, failed)
        return planned, rows, failed

    def _plans(
        self, planned: StepRows, row: Sequence[int], failed: list[Skipped]
    ) -> list[tuple[int, Plan]]:
        """Plans of a row, with the indices of their samples."""
        plans: list[tuple[int, Plan]] = []
        room = self.samples.limits
        for index in row:
            plan = planned.plans.pop(index, None) or self.samples.plan(index)
            if isinstance(plan, Plan) and not room.hold(plan):
                plan = self.samples.outgrown(plan, index)
            if isinstance(plan, Skipped):
                failed.append(plan)
            else:
                plans.append((index, plan))
                room = room.without(plan)
        return plans

    def _decoded(
        self, rows: Sequence[Sequence[tuple[int, Plan]]], failed: list[Skipped]
    ) -> list[list[Example]]:
        """Rows of a micro-batch, their patches one after the other in memory."""
        count = sum(plan.num_patches for row in rows for _, plan in row)
        patches = empty_patches(count, self.samples.processor.image.patch_dim)
        at = 0
        decoded: list[list[Example]] = []
        for row in rows:
            examples: list[Example] = []
            for index, plan in row:
                loaded = self.samples.load(plan, index, patches[at : at + plan.num_patches])
                at += plan.num_patches
                if isinstance(loaded, Skipped):
                    failed.append(loaded)
                else:
                    examples.append(loaded)
            decoded.append(examples)
        return decoded


class TicketSampler(Sampler[Ticket]):
    """Hands out tickets from where the order stands, and remembers where each one leaves it."""

    def __init__(
        self, samples: Samples, planner: StepPlanner, state: State, num_steps: int
    ) -> None:
        self.samples, self.planner, self.state, self.num_steps = samples, planner, state, num_steps
        self._after: dict[int, State] = {}

    def __len__(self) -> int:
        return self.num_steps  # of the whole run, also when it was resumed

    def __iter__(self) -> Iterator[Ticket]:
        self._after = {self.state["step"]: self.state}
        for ticket in self.planner.tickets(self.samples, self.state):
            if ticket.step >= self.num_steps:
                return
            self._after[ticket.step + 1] = ticket.after
            yield ticket

    def state_before(self, step: int) -> State:
        """Where the order stands when `step` is the next to be trained.

        Raises:
            KeyError: the step has not been handed out yet, or lies far behind.
        """
        if step == self.state["step"]:
            return self.state
        return self._after[step]

    def forget_before(self, step: int) -> None:
        """Keep no states of steps that have been trained."""
        for done in [known for known in self._after if known < step]:
            del self._after[done]


class ValidationSet(Dataset[StepBatch]):
    """A source cut into items of `samples` examples, each packed like a training step."""

    def __init__(
        self,
        name: str,
        source: Source,
        processor: Processor,
        rows: Rows,
        work: TransformerWork,
        samples: int,
    ) -> None:
        mixture = Mixture({name: Weighted(source=source)})
        self.name, self.source, self.rows, self.work = name, source, rows, work
        self.samples = Samples(mixture, processor, rows.limits)
        self.samples_per_item = samples

    def __len__(self) -> int:
        return -(-len(self.source) // self.samples_per_item)

    def __getitem__(self, item: int) -> StepBatch:
        if not 0 <= item < len(self):
            raise IndexError(item)
        first = item * self.samples_per_item
        part = self.samples.mixture.parts[self.name]
        examples: list[Example] = []
        skipped: list[Skipped] = []
        for index in range(first, min(first + self.samples_per_item, len(self.source))):
            plan = self.samples.plan_of(self.name, part, index, index)
            loaded = self.samples.load(plan, index) if isinstance(plan, Plan) else plan
            if isinstance(loaded, Skipped):
                skipped.append(loaded)
            else:
                examples.append(loaded)
        plans = [example.plan for example in examples if example.plan is not None]
        rows = pack_all(Sizes.of(plans), self.rows.limits, self.work)
        return self.rows.step_batch(
            item,
            [[examples[i] for i in row] for row in rows],
            skipped,
            self.samples.processor,
            [self.name],
        )


class VLMDataModule(L.LightningDataModule):
    """Loaders for training steps and for each validation source.

    Its state says which sample comes next, and which wait in the packing buffer; nothing is read or
    decoded to go on from it.
    """

    def __init__(
        self,
        mixture: Mixture,
        validation: dict[str, Source],
        processor: Processor,
        rows: Rows,
        planner: StepPlanner,
        work: TransformerWork,
        num_steps: int,
        skips: SkipLog | None = None,
        validation_rows: Rows | None = None,
        validation_samples: int = 64,
        num_workers: int = 0,
        prefetch_steps: int = 4,
    ) -> None:
        """Keep the parts.

        Args:
            mixture: training samples.
            validation: held-out sources by name; each is scored on its own.
            processor: record -> example, the same for training and validation.
            rows: the shape of micro-batches.
            planner: which samples make up a step.
            work: of a sample, to keep rows and ranks even.
            num_steps: optimiser steps of the run.
            skips: counts samples that cannot be used, and sets how many may be.
            validation_rows: the shape of validation micro-batches, where it differs.
            validation_samples: samples of a validation item.
            num_workers: processes that prepare steps ahead; 0 prepares them in the training process.
            prefetch_steps: steps that each worker prepares ahead.
        """
        super().__init__()
        if num_workers < 0 or prefetch_steps < 1 or validation_samples < 1:
            raise ValueError(
                f"num_workers is {num_workers}, prefetch_steps {prefetch_steps} and validation_samples "
                f"{validation_samples}; the first may be 0, the others must be positive"
            )
        self.mixture, self.validation = mixture, validation
        self.processor, self.rows, self.planner, self.work = processor, rows, planner, work
        self.validation_rows = validation_rows or rows
        self.num_steps, self.num_workers = num_steps, num_workers
        self.prefetch_steps, self.validation_samples = prefetch_steps, validation_samples
        self.skips = skips or SkipLog()
        self.samples = Samples(mixture, processor, rows.limits)
        self._state = planner.start()
        self._sampler: TicketSampler | None = None

    def training_steps(self, rank: int = 0, world_size: int = 1) -> TrainingSteps:
        """What turns tickets into steps, for one rank."""
        return TrainingSteps(self.samples, self.planner, self.rows, rank, world_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """One item per optimiser step, in order."""
        # ranks that share the tokens or matrices of a sample are given the same samples
        share = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        steps = self.training_steps(share.get("rank", 0), share.get("num_replicas", 1))
        if isinstance(self.planner, FixedRows) and (
            self.trainer is None or self.trainer.is_global_zero
        ):
            self._suggest_measuring()
        self._sampler = TicketSampler(self.samples, self.planner, self._state, self.num_steps)
        return self._loader(steps, sampler=self._sampler)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per validation source, in the order of `validation`."""
        return [
            self._loader(
                ValidationSet(
                    name,
                    source,
                    self.processor,
                    self.validation_rows,
                    self.work,
                    self.validation_samples,
                )
            )
            for name, source in self.validation.items()
        ]

    def on_before_batch_transfer(self, batch: StepBatch, dataloader_idx: int) -> StepBatch:
        """Count what was left out of training, before the step is trained.

        Raises:
            TooManySkippedError: a cap is exceeded.
        """
        if self.trainer is not None and not self.trainer.training:
            return batch  # held-out samples come up again and again
        if self._sampler is not None:
            self._sampler.forget_before(batch.step)
        self.skips.add(batch.samples, batch.skipped)
        return batch

    def state_dict_before(self, step: int) -> dict[str, Any]:
        """Where the data stand when `step` is the next to be trained."""
        state = self._state if self._sampler is None else self._sampler.state_before(step)
        return {
            "order": state,
            "skips": self.skips.state_dict(),
            "fingerprint": self.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        """See `state_dict_before`, for the step that the trainer takes next."""
        return self.state_dict_before(self.trainer.global_step if self.trainer else 0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            CheckpointError: it belongs to other data, another processor or another packing.
        """
        if found := list(differences(state["fingerprint"], self.fingerprint)):
            raise CheckpointError(
                "the data are not those of the checkpoint, so the order would be another one: "
                + "; ".join(found)
            )
        self._state = state["order"]
        self.skips.load_state_dict(state["skips"])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the order of samples and their division into steps depend on."""
        settings = {name: str(plain(value)) for name, value in vars(self.planner).items()}
        return {
            **self.samples.fingerprint,
            "planner": {"class": type(self.planner).__name__, **settings},
        }

    def _suggest_measuring(self) -> None:
        parts = self.mixture.parts.items()
        names = [name for name, part in parts if part.sizes is None and is_measurable(part.source)]
        if names:
            logger.info(
                "rows are filled in the main process, which looks at the headers of all samples of %s: "
                "python -m vlmkit.stats write_sizes=true with the same options measures them once, and "
                "data.mixture.sizes=<folder> makes filling rows free",
                listed(names),
            )

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=None,
            shuffle=None if options else False,
            num_workers=self.num_workers,
            persistent_workers=False,
            prefetch_factor=self.prefetch_steps if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            **options,
        )
