"""Feeds the trainer: one item is the whole of one optimiser step on this rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from vlmkit.batch import VLMBatch
from vlmkit.data.collate import collate
from vlmkit.data.mixture import Mixture, Source
from vlmkit.data.packing import pack_rows
from vlmkit.data.processor import Example, Processor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How examples become micro-batches.

    `row_tokens` is the capacity of a row. With `fixed_length` all rows are padded to it, so that
    compiled code sees one shape; without, to the longest row of the micro-batch.
    """

    row_tokens: int
    rows_per_micro_batch: int = 1
    fixed_length: bool = False

    def collate(self, examples: list[Example], processor: Processor) -> list[VLMBatch]:
        """Pack examples into rows, and rows into micro-batches."""
        rows = pack_rows(examples, self.row_tokens)
        return [
            collate(
                rows[i : i + self.rows_per_micro_batch],
                pad_id=processor.special_tokens.pad_id,
                merge_size=processor.image.merge_size,
                row_tokens=self.row_tokens if self.fixed_length else None,
            )
            for i in range(0, len(rows), self.rows_per_micro_batch)
        ]


class TrainingSteps(Dataset[list[VLMBatch]]):
    """Item k is the k-th optimiser step; a pure function of the mixture's seed and k."""

    def __init__(
        self,
        mixture: Mixture,
        processor: Processor,
        rows: Rows,
        num_steps: int,
        samples_per_step: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if samples_per_step % world_size:
            raise ValueError(
                f"data.samples_per_step {samples_per_step} does not divide by {world_size} processes"
            )
        self.mixture, self.processor, self.rows = mixture, processor, rows
        self.num_steps, self.samples_per_step = num_steps, samples_per_step
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> list[VLMBatch]:
        if not 0 <= step < self.num_steps:
            raise IndexError(step)
        first = step * self.samples_per_step
        mine = range(first + self.rank, first + self.samples_per_step, self.world_size)
        examples = [self.processor(self.mixture[index]) for index in mine]
        return self.rows.collate(examples, self.processor)


class ValidationSet(Dataset[list[VLMBatch]]):
    """A source cut into items of `samples` examples, each packed like a training step."""

    def __init__(self, source: Source, processor: Processor, rows: Rows, samples: int) -> None:
        self.source, self.processor, self.rows, self.samples = source, processor, rows, samples

    def __len__(self) -> int:
        return -(-len(self.source) // self.samples)

    def __getitem__(self, item: int) -> list[VLMBatch]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        stop = min((item + 1) * self.samples, len(self.source))
        examples = [self.processor(self.source[i]) for i in range(item * self.samples, stop)]
        return self.rows.collate(examples, self.processor)


class VLMDataModule(L.LightningDataModule):
    """Loaders for training steps and for each validation source."""

    def __init__(
        self,
        mixture: Mixture,
        validation: dict[str, Source],
        processor: Processor,
        rows: Rows,
        num_steps: int,
        samples_per_step: int,
        validation_samples: int = 64,
        num_workers: int = 0,
    ) -> None:
        """Keep the parts.

        Args:
            mixture: training samples.
            validation: held-out sources by name; each is scored on its own.
            processor: record -> example, the same for training and validation.
            rows: how examples become micro-batches.
            num_steps: optimiser steps of the run.
            samples_per_step: samples of a step over all ranks.
            validation_samples: samples of a validation item.
            num_workers: processes that prepare steps ahead; 0 prepares them in the training process.
        """
        super().__init__()
        self.mixture, self.validation = mixture, validation
        self.processor, self.rows = processor, rows
        self.num_steps, self.samples_per_step = num_steps, samples_per_step
        self.validation_samples, self.num_workers = validation_samples, num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """One item per optimiser step, in order."""
        trainer = self.trainer
        steps = TrainingSteps(
            self.mixture,
            self.processor,
            self.rows,
            self.num_steps,
            self.samples_per_step,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return self._loader(steps)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per validation source, in the order of `validation`."""
        return [
            self._loader(ValidationSet(source, self.processor, self.rows, self.validation_samples))
            for source in self.validation.values()
        ]

    def _loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=None,
            shuffle=False,
            num_workers=self.num_workers,
            persistent_workers=False,
            prefetch_factor=4 if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )
