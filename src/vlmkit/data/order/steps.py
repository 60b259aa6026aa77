"""Which samples make up step k, and in which rows: the order of a run.

The order is a function of the seed and the data alone. Ranks and workers only decide who does which
part of it. Where it stands is a small state; nothing is decoded to get there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vlmkit.data.order.packing import pack_all, pack_rows, row_work
from vlmkit.data.order.samples import Samples, Skipped
from vlmkit.data.order.work import Floats, Sizes, TransformerWork
from vlmkit.data.processor import Plan
from vlmkit.errors import ConfigError

State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """A step before anything is decoded."""

    step: int
    rows: tuple[tuple[int, ...], ...]  # indices of samples in the mixture
    costs: Floats  # work of each row
    vision: Floats  # the part of it that the encoder has
    skipped: tuple[Skipped, ...]  # left out because of what their headers say
    plans: dict[int, Plan | Skipped] = field(default_factory=dict)  # that were made on the way


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What a worker needs to make a step; `rows` may still be left for the worker to find."""

    step: int
    after: State  # where the order stands when the step is done
    rows: StepRows | None = None


class StepPlanner(Protocol):
    """The order of a run."""

    def start(self) -> State:
        """Where the order begins."""
        ...

    def tickets(self, samples: Samples, state: State) -> Iterator[Ticket]:
        """Steps from a state on, without end; called in the main process."""
        ...

    def rows(self, samples: Samples, ticket: Ticket) -> StepRows:
        """The rows of a step; called in a worker."""
        ...


class FixedSamples:
    """Every step holds the same number of samples, in as many rows as they need.

    Steps of runs that differ in how samples are laid out hold the same samples: the choice for
    comparisons. Each step stands on its own, so that workers plan it.

    Args:
        samples_per_step: over all ranks.
        work: of a sample.
    """

    def __init__(self, samples_per_step: int, work: TransformerWork) -> None:
        if samples_per_step < 1:
            raise ValueError(f"samples_per_step is {samples_per_step}; it must be positive")
        self.samples_per_step, self.work = samples_per_step, work

    def start(self) -> State:
        """See `StepPlanner.start`."""
        return {"step": 0}

    def tickets(self, samples: Samples, state: State) -> Iterator[Ticket]:
        """See `StepPlanner.tickets`."""
        step = state["step"]
        while True:
            yield Ticket(step=step, after={"step": step + 1})
            step += 1

    def rows(self, samples: Samples, ticket: Ticket) -> StepRows:
        """See `StepPlanner.rows`."""
        first = ticket.step * self.samples_per_step
        indices = np.arange(first, first + self.samples_per_step)
        plans: dict[int, Plan | Skipped] = {}
        sizes, skipped = samples.sizes(indices, plans)
        good = np.array([reason is None for reason in skipped])
        packed = pack_all(sizes[good], samples.limits, self.work)
        kept, sizes = indices[good], sizes[good]
        return StepRows(
            step=ticket.step,
            rows=tuple(tuple(int(kept[i]) for i in row) for row in packed),
            costs=row_work(packed, self.work(sizes)),
            vision=row_work(packed, self.work.vision(sizes)),
            skipped=tuple(reason for reason in skipped if reason is not None),
            plans=plans,
        )


class FixedRows:
    """Every step holds the same number of rows, nearly full, and as many samples as go in.

    The choice for throughput. Samples that find no place wait in a buffer, which is part of the state.
    Sizes must be known while rows are filled: from tables (`python -m vlmkit.stats` writes them), or else
    from headers, read in the main process.

    Args:
        rows_per_step: over all ranks.
        work: of a sample.
        slack: samples to choose from beyond those that fill the rows, as a share of them.
    """

    def __init__(self, rows_per_step: int, work: TransformerWork, slack: float = 0.5) -> None:
        if rows_per_step < 1 or slack < 0:
            raise ValueError(
                f"rows_per_step is {rows_per_step} and slack {slack}; they must be positive"
            )
        self.rows_per_step, self.work, self.slack = rows_per_step, work, slack

    def start(self) -> State:
        """See `StepPlanner.start`."""
        return {"step": 0, "next_sample": 0, "waiting": []}

    def tickets(self, samples: Samples, state: State) -> Iterator[Ticket]:
        """See `StepPlanner.tickets`."""
        step, cursor = state["step"], state["next_sample"]
        pool = np.array(state["waiting"], dtype=np.int64)
        sizes, _ = samples.sizes(pool)
        while True:
            pool, sizes, cursor, skipped = self._refill(samples, pool, sizes, cursor)
            packed = pack_rows(sizes, samples.limits, self.work, self.rows_per_step)
            rows = StepRows(
                step=step,
                rows=tuple(tuple(int(pool[i]) for i in row) for row in packed.rows),
                costs=row_work(packed.rows, self.work(sizes)),
                vision=row_work(packed.rows, self.work.vision(sizes)),
                skipped=tuple(skipped),
            )
            left = np.array(packed.left, dtype=np.int64)
            pool, sizes = pool[left], sizes[left]
            step += 1
            after = {"step": step, "next_sample": cursor, "waiting": pool.tolist()}
            yield Ticket(step=step - 1, after=after, rows=rows)

    def rows(self, samples: Samples, ticket: Ticket) -> StepRows:
        """See `StepPlanner.rows`."""
        assert ticket.rows is not None
        return ticket.rows

    def _refill(
        self, samples: Samples, pool: Any, sizes: Sizes, cursor: int
    ) -> tuple[Any, Sizes, int, list[Skipped]]:
        """Take samples from the mixture until one of the budgets has enough to choose from."""
        limits = samples.limits
        rows = (1 + self.slack) * self.rows_per_step
        max_patches = np.inf if limits.patches is None else rows * limits.patches
        left_out: list[Skipped] = []
        seen = 0
        while (
            missing := rows * limits.tokens - int(sizes.tokens.sum())
        ) > 0 and sizes.patches.sum() < max_patches:
            mean = sizes.tokens.mean() if len(sizes) else limits.tokens / 4
            count = int(np.clip(missing / max(mean, 1), 1, 4096))
            indices = np.arange(cursor, cursor + count)
            found, skipped = samples.sizes(indices)
            good = np.array([reason is None for reason in skipped])
            left_out += [reason for reason in skipped if reason is not None]
            seen += count
            pool, sizes, cursor = (
                np.concatenate([pool, indices[good]]),
                sizes + found[good],
                cursor + count,
            )
            if seen > 10_000 and len(left_out) == seen:
                raise ConfigError(
                    f"none of {seen} samples can be used; the last: {left_out[-1].message}"
                )
        return pool, sizes, cursor, left_out
