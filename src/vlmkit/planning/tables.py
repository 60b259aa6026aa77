"""A plan as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmkit.planning.planner import Plan
from vlmkit.planning.search import Found
from vlmkit.training.parallel.layout import Layout

GIB = 2**30
SHORT = {
    "pipeline": "pp",
    "replicate": "replicas",
    "shard": "shard",
    "context": "cp",
    "tensor": "tp",
}


LABELS = {
    "batch": "packed batch (patches, ids, positions)",
    "visual tokens": "visual tokens (merged, DeepStack)",
    "gathered weights": "gathered weights of parts at work",
    "cast weights": "bfloat16 copies of weights",
    "working": "working memory of the part at work",
    "buckets": "buckets of gradients",
}
"""Longer names of lines of memory."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage of the recipe takes under its best layout; no plan: none fits."""

    name: str
    tokens: float
    plan: Plan | None
    nearest: Plan | None = None

    @property
    def hours(self) -> float | None:
        """Device-hours."""
        if self.plan is None:
            return None
        return self.tokens / self.plan.tokens_per_s * self.plan.layout.world_size / 3600

    @property
    def cost(self) -> float | None:
        """In the currency of the device's price."""
        if self.plan is None or self.plan.device.price_per_hour is None:
            return None
        assert self.hours is not None
        return self.hours * self.plan.device.price_per_hour


def name_of(layout: Layout) -> str:
    """Axes that divide something, as in `shard 8 x tp 2, zero 3`."""
    axes = [f"{SHORT[axis]} {size}" for axis, size in layout.sizes.items() if size > 1]
    named = " x ".join(axes) or "one rank"
    named += f", ep {layout.expert}" if layout.expert > 1 else ""
    return f"{named}, zero {layout.zero}" if layout.zero else named


def memory_table(plan: Plan) -> RenderableType:
    """Bytes of the rank that holds most, at its fullest moment."""
    verdict = "fits" if plan.fits else "does not fit"
    table = _table("", "GiB")
    for name, size in plan.memory.lines.items():
        table.add_row(LABELS.get(name, name), f"{size / GIB:,.2f}")
    table.add_section()
    usable = plan.device.usable_bytes / GIB
    table.add_row("in all", f"{plan.memory.total / GIB:,.2f}")
    table.add_row(f"{plan.device.name} can take: {verdict}", f"{usable:,.2f}")
    return _titled(
        f"memory of the fullest rank, {name_of(plan.layout)}; most is held in the {plan.memory.at}",
        table,
    )


def phases_table(plan: Plan) -> RenderableType:
    """What is held while each part of the model is at work."""
    table = _table("while this runs", "GiB in all", "GiB that it works with")
    for name, phase in plan.memory.phases.items():
        table.add_row(name, f"{phase.total / GIB:,.2f}", f"{phase.working / GIB:,.2f}")
    return _titled("the most that is held in each phase of a step (logits: head and loss)", table)


def flops_table(plan: Plan) -> RenderableType:
    """Of one micro-batch."""
    table = _table("component", "forward, TFLOP", "backward, TFLOP", "share")
    total = plan.flops.total or 1.0
    for name, forward in plan.flops.forward.items():
        backward = plan.flops.backward.get(name, 0.0)
        table.add_row(
            name, f"{forward / 1e12:,.3f}", f"{backward / 1e12:,.3f}", f"{(forward + backward) / total:.1%}"
        )  # fmt: skip
    return _titled("operations of a micro-batch, by definition", table)


def traffic_table(plan: Plan) -> RenderableType:
    """Of one rank in a step."""
    table = _table("axis", "kind", "ranks", "calls", "GiB", "s", "hides behind compute")
    for t in plan.traffic:
        table.add_row(
            t.axis, t.kind, str(t.ranks), f"{t.calls:,}", f"{t.payload / GIB:,.3f}",
            f"{t.seconds:.4f}", "yes" if t.hides else "no",
        )  # fmt: skip
    if not plan.traffic:
        table.add_row("none: one rank")
    return _titled("communication of one rank in a step", table)


def time_table(plan: Plan) -> RenderableType:
    """Where the time of a step goes."""
    table = _table("", "")
    rows = {
        "compute": f"{plan.compute_s:.3f} s",
        "communication that nothing hides": f"{plan.exposed_s:.3f} s",
        "pipeline bubble": f"{plan.bubble_s:.3f} s",
        "optimiser": f"{plan.optimizer_s:.3f} s",
        "step": f"{plan.step_s:.3f} s",
        "micro-batches of a data rank": f"{plan.micro_batches}",
        "tokens of a step": f"{plan.step_tokens:,.0f}",
        "tokens per second": f"{plan.tokens_per_s:,.0f}",
        "MFU": f"{plan.mfu:.1%}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return _titled("predicted step", table)


def layouts_table(found: Found, top: int) -> RenderableType:
    """The fastest that fit, then those that come nearest to fitting, and why they do not."""
    best = _table("layout", "GiB", "step, s", "tokens/s", "MFU")
    for plan in found.fitting[:top]:
        best.add_row(*_row(plan))
    parts: list[RenderableType] = [
        _titled(f"{found.compared} layouts compared; the fastest that fit", best)
    ]
    if found.too_large:
        large = _table("layout", "GiB", "too much", "largest part", "held in the")
        for plan in found.too_large[: max(top // 2, 1)]:
            over = (plan.memory.total - plan.device.usable_bytes) / GIB
            large.add_row(
                name_of(plan.layout), f"{plan.memory.total / GIB:,.1f}", f"{over:,.1f}", _largest(plan),
                plan.memory.at,
            )  # fmt: skip
        parts.append(_titled("do not fit: faster ones, and those that come nearest", large))
    # a dense model has no experts to divide, and nobody asked for it
    if refused := [reason for reason in found.refused if " 0 experts" not in reason]:
        parts.append(Text("\nnot planned: " + "; ".join(refused)))
    return Group(*parts)


def devices_table(plans: Iterable[Plan]) -> RenderableType:
    """One layout on several kinds of device."""
    table = _table("device", "GiB held", "GiB to use", "step, s", "tokens/s", "MFU", "")
    for plan in plans:
        _, _, *rest = _row(plan)
        table.add_row(
            plan.device.name, f"{plan.memory.total / GIB:,.1f}", f"{plan.device.usable_bytes / GIB:,.1f}",
            *rest, "" if plan.fits else "does not fit",
        )  # fmt: skip
    return _titled("the same layout on other devices", table)


def stages_table(stages: Sequence[StageCost], price: float | None) -> RenderableType:
    """Device-hours of the recipe."""
    costs = [f"cost, at {price:g} an hour"] if price else []
    table = _table("stage", "tokens", "layout", "MFU", "GPU-hours", "days", *costs)
    reasons = []
    for stage in stages:
        if stage.plan is None or stage.hours is None:
            table.add_row(stage.name, counted(stage.tokens), "none fits")
            reasons.append(Text(f"{stage.name}: {_why_none(stage.nearest)}"))
            continue
        table.add_row(
            stage.name, counted(stage.tokens), name_of(stage.plan.layout), f"{stage.plan.mfu:.1%}",
            f"{stage.hours:,.0f}", f"{stage.hours / stage.plan.layout.world_size / 24:,.1f}",
            *([f"{stage.cost:,.0f}"] if stage.cost is not None else []),
        )  # fmt: skip
    known = [stage for stage in stages if stage.hours is not None]
    if len(known) > 1:
        table.add_section()
        hours = sum(stage.hours or 0.0 for stage in known)
        cost = [f"{sum(stage.cost or 0.0 for stage in known):,.0f}"] if price else []
        ranks = known[0].plan.layout.world_size if known[0].plan else 1
        table.add_row(
            "in all" if len(known) == len(stages) else "those that fit",
            counted(sum(stage.tokens for stage in known)), "", "",
            f"{hours:,.0f}", f"{hours / ranks / 24:,.1f}", *cost,
        )  # fmt: skip
    return Group(
        _titled("stages of the recipe, each under its fastest layout that fits", table), *reasons
    )


def counted(number: float) -> str:
    """A large number in thousands, millions and so on: 67 B, 1.5 T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:,.3g} {letter}"
    return f"{number:,.0f}"


def _largest(plan: Plan) -> str:
    lines = plan.memory.lines
    return max(lines, key=lambda name: lines[name])


def _why_none(nearest: Plan | None) -> str:
    if nearest is None:
        return "none fits: fewer rows in a step than ranks"
    usable = nearest.device.usable_bytes / GIB
    return (
        f"none fits: the smallest, {name_of(nearest.layout)}, takes {nearest.memory.total / GIB:,.0f} of "
        f"{usable:,.0f} GiB in the {nearest.memory.at}, most of it {_largest(nearest)}"
    )


def _row(plan: Plan) -> tuple[str, ...]:
    return (
        name_of(plan.layout), f"{plan.memory.total / GIB:,.1f}", f"{plan.step_s:.2f}",
        f"{plan.tokens_per_s:,.0f}", f"{plan.mfu:.1%}",
    )  # fmt: skip


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _titled(title: str, table: Table) -> Group:
    """A title as long as it likes, and space before it."""
    return Group(Text(f"\n{title}", style="italic"), table)
