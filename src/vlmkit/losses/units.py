"""Whose tokens a weighting counts: a sample's or a response's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vlmkit.batch import VLMBatch
from vlmkit.errors import ConfigError


class CountingUnit(Protocol):
    """Divides the scored tokens of a micro-batch into units."""

    def __call__(self, batch: VLMBatch) -> tuple[Tensor, int]:
        """Number of the unit of each scored token, (batch, seq) int64, and the number of units."""
        ...


class PerSample:
    """All scored tokens of a sample count together, however many messages they stand in."""

    def __call__(self, batch: VLMBatch) -> tuple[Tensor, int]:
        """See `CountingUnit`."""
        if batch.sample_ids is None:
            raise ValueError("the batch has no sample_ids: this one was made for generation")
        return batch.sample_ids, batch.num_samples


class PerResponse:
    """Each scored message counts for itself; a document is one, pictures in it or not."""

    def __call__(self, batch: VLMBatch) -> tuple[Tensor, int]:
        """See `CountingUnit`.

        Raises:
            ConfigError: the batch does not say where responses begin.
        """
        if batch.response_ids is None:
            raise ConfigError(
                "loss/unit=response: the batch does not say which response its tokens belong to. "
                "Batches of `collate` do; for others set VLMBatch.response_ids and num_responses, "
                "or take loss/unit=sample"
            )
        return batch.response_ids, batch.num_responses
