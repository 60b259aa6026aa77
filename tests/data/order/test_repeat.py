"""Repeated steps: the same samples under new step numbers, for either planner, also after a resume."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.data.order.test_steps import PLANNERS, data_module, processor  # noqa: F401
from vlmkit.data.order.repeat import RepeatSteps


def steps(planner, samples, state, count):
    tickets = list(islice(planner.tickets(samples, state), count))
    return tickets, [planner.rows(samples, ticket) for ticket in tickets]


@pytest.mark.parametrize("name", PLANNERS)
def test_samples_repeat_and_step_numbers_go_on(processor, name):  # noqa: F811
    samples = data_module(processor, name).samples
    original = PLANNERS[name]()
    _, first = steps(original, samples, original.start(), 2)
    planner = RepeatSteps(PLANNERS[name](), num_steps=2)
    tickets, repeated = steps(planner, samples, planner.start(), 5)
    assert first[0].rows != first[1].rows
    assert [rows.rows for rows in repeated] == [first[k % 2].rows for k in range(5)]
    assert [rows.step for rows in repeated] == [ticket.step for ticket in tickets] == [*range(5)]
    _, resumed = steps(planner, samples, tickets[2].after, 2)
    assert [(rows.step, rows.rows) for rows in resumed] == [
        (rows.step, rows.rows) for rows in repeated[3:]
    ]


def test_no_step_cannot_be_repeated():
    with pytest.raises(ValueError, match="num_steps is 0"):
        RepeatSteps(PLANNERS["samples"](), num_steps=0)
