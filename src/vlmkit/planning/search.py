"""Layouts of a number of ranks, from the fastest that fits to those that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

from vlmkit.errors import ConfigError
from vlmkit.planning.planner import Plan, Planner
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.refusals import check_layout


@dataclass(frozen=True, kw_only=True)
class Found:
    """Outcome of a search.

    Attributes:
        fitting: the fastest that fit, by tokens per second, the most first.
        too_large: faster ones that do not fit, and those that come nearest to fitting; by how much they
            hold, the least first.
        refused: why the model does not divide otherwise.
        compared: layouts that the model can be divided by.
    """

    fitting: Sequence[Plan]
    too_large: Sequence[Plan]
    refused: Sequence[str]
    compared: int


def search(
    planner: Planner,
    ranks: int,
    *,
    leaders: int = 12,
    most_planned: int = 32,
    most_tensor: int = 8,
    most_context: int = 16,
    most_pipeline: int = 16,
    most_expert: int = 64,
) -> Found:
    """Compare every layout of powers of two within the bounds, and plan the fastest.

    Tracing what a layout keeps in memory takes most of the time. So layouts whose weights and moments alone
    are too large are put aside, the others are ordered by their estimated speed, and traced from the
    fastest on until enough of them fit. Tensor ranks stay within a node. What the engine refuses is not
    planned.

    Args:
        planner: of model, data and device.
        ranks: devices.
        leaders: fitting layouts to find.
        most_planned: layouts to trace at most.
        most_tensor: see `Layout`; likewise the others.
    """
    least: list[tuple[float, Layout]] = []
    refusals: dict[tuple[int, ...], str | None] = {}  # zero and replicas do not matter
    for layout in layouts(
        ranks,
        most_tensor=min(most_tensor, planner.device.devices_per_node),
        most_context=most_context,
        most_pipeline=most_pipeline,
        most_expert=most_expert,
        node=planner.device.devices_per_node,
    ):
        if layout.num_data_ranks * planner.rows_per_micro_batch > max(planner.rows_per_step, 1):
            continue  # some data ranks would have nothing to do
        key = (layout.pipeline, layout.shard, layout.context, layout.tensor, layout.expert)
        if key not in refusals:
            refusals[key] = _refusal(planner, layout)
        if refusals[key] is None:
            least.append((planner.least_bytes(layout), layout))
    least.sort(key=lambda item: item[0])
    usable = planner.device.usable_bytes
    possible = [layout for size, layout in least if size <= usable]
    possible.sort(key=lambda layout: -planner.estimated_tokens_per_s(layout))
    fitting: list[Plan] = []
    large: list[Plan] = []
    for layout in possible[:most_planned]:
        if len(fitting) == leaders:
            break
        plan = planner.plan(layout)
        (fitting if plan.fits else large).append(plan)
    known = {plan.layout for plan in (*fitting, *large)}
    nearest = [layout for _, layout in least if layout not in known]
    for layout in nearest[: 0 if fitting else leaders]:  # the smallest of all
        plan = planner.plan(layout)
        (fitting if plan.fits else large).append(plan)
    return Found(
        fitting=sorted(fitting, key=lambda plan: -plan.tokens_per_s),
        too_large=sorted(large, key=lambda plan: plan.memory.total),
        refused=sorted({reason for reason in refusals.values() if reason}),
        compared=len(least),
    )


def _refusal(planner: Planner, layout: Layout) -> str | None:
    try:
        check_layout(layout, planner.model, planner.loss)
    except ConfigError as error:
        return str(error)
    return None


def layouts(
    ranks: int,
    *,
    most_tensor: int,
    most_context: int,
    most_pipeline: int,
    most_expert: int,
    node: int = 8,
) -> Iterator[Layout]:
    """Layouts of a number of ranks; what is left after the other axes is sharded, wholly or by node."""
    if ranks == 1:
        yield Layout(zero=0)
        return
    yield Layout(replicate=ranks, zero=0)
    for pipeline, context, tensor in product(
        _powers(most_pipeline), _powers(most_context), _powers(most_tensor)
    ):
        if ranks % (pipeline * context * tensor):
            continue
        data = ranks // (pipeline * context * tensor)
        shards = {data, *(s for s in (1, node, 4 * node, 16 * node) if s < data and not data % s)}
        for shard, zero in product(sorted(shards), (3, 2, 1)):
            for expert in _powers(min(most_expert, shard * context * tensor)):
                with suppress(ConfigError):  # sizes that go with no model
                    yield Layout(
                        pipeline=pipeline, replicate=data // shard, shard=shard, context=context,
                        tensor=tensor, expert=expert, zero=zero,
                    )  # fmt: skip


def _powers(most: int) -> list[int]:
    return [1 << i for i in range(max(most, 1).bit_length()) if 1 << i <= most]
