"""The first steps of an order again and again: a model that cannot learn them by heart has a bug."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

from vlmkit.data.order.samples import Samples
from vlmkit.data.order.steps import State, StepPlanner, StepRows, Ticket


class RepeatSteps:
    """Step k holds the samples of step `k % num_steps` of another order; step numbers go on.

    Args:
        planner: the order whose beginning is repeated.
        num_steps: length of that beginning, in optimiser steps.
    """

    def __init__(self, planner: StepPlanner, num_steps: int = 1) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; it must be positive")
        self.planner, self.num_steps = planner, num_steps

    def start(self) -> State:
        """See `StepPlanner.start`."""
        return {"step": 0}

    def tickets(self, samples: Samples, state: State) -> Iterator[Ticket]:
        """See `StepPlanner.tickets`."""
        first = islice(self.planner.tickets(samples, self.planner.start()), self.num_steps)
        repeated = tuple(first)
        for step in count(state["step"]):
            ticket = repeated[step % self.num_steps]
            yield replace(ticket, step=step, after={"step": step + 1})

    def rows(self, samples: Samples, ticket: Ticket) -> StepRows:
        """See `StepPlanner.rows`."""
        original = replace(ticket, step=ticket.step % self.num_steps)
        return replace(self.planner.rows(samples, original), step=ticket.step)
