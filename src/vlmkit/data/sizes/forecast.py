"""What training will make of measured sources: how full rows are, and how evenly ranks are busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.packing import deal
from vlmkit.data.order.samples import Samples, table_key
from vlmkit.data.order.steps import StepPlanner, StepRows
from vlmkit.data.processor import Processor
from vlmkit.data.record import Conversation
from vlmkit.data.rows import Rows
from vlmkit.data.sizes.measured import Measured
from vlmkit.data.sizes.size_table import is_measurable


class StandIn:
    """As many samples as were measured of a source; only their sizes are known."""

    fingerprint = None

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        """See `vlmkit.data.order.mixture.Source`."""
        raise NotImplementedError("only sizes are known")


def stand_ins(
    mixture: Mixture, measured: Mapping[str, Measured], processor: Processor, rows: Rows
) -> Samples:
    """Samples in the shares of a mixture, with the sizes that were measured of some of each source."""
    parts: dict[str, Weighted] = {}
    for (name, part), share in zip(mixture.parts.items(), mixture.shares, strict=True):
        if share:
            stand_in = Weighted(
                source=StandIn(len(measured[name])), weight=share, over_length=part.over_length
            )
            key = table_key(stand_in, processor, rows.limits)
            parts[name] = replace(stand_in, sizes=measured[name].table(key))
    return Samples(Mixture(parts), processor, rows.limits)


def forecast(
    mixture: Mixture,
    measured: Mapping[str, Measured],
    processor: Processor,
    rows: Rows,
    planner: StepPlanner,
    num_steps: int = 40,
    world_sizes: Sequence[int] = (1, 8, 64),
) -> dict[str, Any]:
    """Plan some steps and count.

    Args:
        mixture: the shares.
        measured: all samples of each source, or some that stand for them.
        processor: of the samples; it made their sizes.
        rows: the shape of micro-batches.
        planner: which samples make up a step.
        num_steps: to plan.
        world_sizes: numbers of ranks to deal rows to.

    Raises:
        ConfigError: no sample can be used.
    """
    samples = stand_ins(mixture, measured, processor, rows)
    tickets = islice(planner.tickets(samples, planner.start()), num_steps)
    steps = [planner.rows(samples, ticket) for ticket in tickets]
    tokens = [_tokens_of_rows(samples, step) for step in steps]
    per_step = float(np.mean([sum(map(len, s.rows)) + len(s.skipped) for s in steps]))
    tokens_per_step = float(np.mean([row.sum() for row in tokens]))
    passes = [
        len(part.source) / share
        for part, share in zip(mixture.parts.values(), mixture.shares, strict=True)
        if share and is_measurable(part.source)
    ]
    epoch = max(passes, default=None)  # all samples of the source that lasts longest
    return {
        "planned_steps": num_steps,
        "samples_per_step": per_step,
        "tokens_per_step": tokens_per_step,
        "rows_per_step": float(np.mean([len(step.rows) for step in steps])),
        "row_fill": float(np.concatenate(tokens).mean() / rows.row_tokens),
        "samples_per_epoch": epoch,
        "steps_per_epoch": epoch and epoch / per_step,
        "tokens_per_epoch": epoch and epoch / per_step * tokens_per_step,
        "ranks": {
            str(size): _on_ranks(steps, tokens, rows, size) for size in world_sizes
        },
    }  # fmt: skip


def _tokens_of_rows(samples: Samples, step: StepRows) -> Any:
    return np.array(
        [samples.sizes(np.array(row))[0].tokens.sum() for row in step.rows], dtype=np.int64
    )


def _on_ranks(
    steps: Sequence[StepRows], tokens: Sequence[Any], rows: Rows, world_size: int
) -> dict[str, float | bool]:
    """Slots that hold a token, and the work of the mean rank beside that of the busiest."""
    slots = filled = 0
    evenness: list[float] = []
    for step, lengths in zip(steps, tokens, strict=True):
        dealt = deal(step.costs, step.vision, world_size)
        work = np.array([step.costs[mine].sum() for mine in dealt])
        evenness.append(float(work.mean() / work.max()) if work.max() else 1.0)
        for mine in dealt:
            for first in range(0, len(mine), rows.rows_per_micro_batch):
                part = lengths[mine[first : first + rows.rows_per_micro_batch]]
                slots += len(part) * (rows.row_tokens if rows.fixed_length else int(part.max()))
                filled += int(part.sum())
    return {
        "rows_per_rank": float(np.mean([len(step.rows) for step in steps])) / world_size,
        "fill": filled / max(slots, 1),
        "evenness": float(np.mean(evenness)),
        "worst_evenness": min(evenness),
        "idle_ranks": min(len(step.rows) for step in steps) < world_size,
    }
