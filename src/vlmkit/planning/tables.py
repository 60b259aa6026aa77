"""A plan as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

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


def memory_table(plan: Plan) -> Table:
    """Bytes of the rank that holds most."""
    verdict = "fits" if plan.fits else "does not fit"
    table = _table(
        f"memory of one rank, {name_of(plan.layout)}, in the {plan.memory.at}", "", "GiB"
    )
    for name, size in plan.memory.lines.items():
        table.add_row(name, f"{size / GIB:,.2f}")
    table.add_section()
    usable = plan.device.usable_bytes / GIB
    table.add_row("in all", f"{plan.memory.total / GIB:,.2f}")
    table.add_row(f"{plan.device.name} can take: {verdict}", f"{usable:,.2f}")
    return table


def flops_table(plan: Plan) -> Table:
    """Of one micro-batch."""
    table = _table("TFLOP of a micro-batch", "component", "forward", "backward")
    for name, forward in plan.flops.forward.items():
        backward = plan.flops.backward.get(name, 0.0)
        table.add_row(name, f"{forward / 1e12:,.3f}", f"{backward / 1e12:,.3f}")
    return table


def traffic_table(plan: Plan) -> Table:
    """Of one rank in a step."""
    table = _table(
        "communication of one rank in a step", "axis", "kind", "ranks", "calls", "GiB", "seconds",
        "hides behind compute",
    )  # fmt: skip
    for t in plan.traffic:
        table.add_row(
            t.axis, t.kind, str(t.ranks), f"{t.calls:,}", f"{t.payload / GIB:,.3f}",
            f"{t.seconds:.4f}", "yes" if t.hides else "no",
        )  # fmt: skip
    return table


def time_table(plan: Plan) -> Table:
    """Where the time of a step goes."""
    table = _table("predicted step", "", "")
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
    return table


def layouts_table(found: Found, top: int) -> Table:
    """The fastest that fit, and those that come nearest to fitting."""
    total = len(found.fitting) + len(found.too_large)
    table = _table(
        f"{total} layouts planned, {len(found.fitting)} fit", "layout", "GiB", "step, s",
        "tokens/s", "MFU", "",
    )  # fmt: skip
    for plan in found.fitting[:top]:
        table.add_row(*_row(plan), "")
    if found.too_large:
        table.add_section()
    for plan in found.too_large[: max(top // 2, 1)]:
        over = (plan.memory.total - plan.device.usable_bytes) / GIB
        largest = max(plan.memory.lines, key=lambda name: plan.memory.lines[name])
        table.add_row(
            *_row(plan), f"{over:,.1f} GiB too much; most is {largest}, in the {plan.memory.at}"
        )
    return table


def devices_table(plans: Iterable[Plan]) -> Table:
    """One layout on several kinds of device."""
    table = _table(
        "the same layout on other devices", "device", "GiB of", "step, s", "tokens/s", "MFU", ""
    )
    for plan in plans:
        size = f"{plan.memory.total / GIB:,.1f} of {plan.device.usable_bytes / GIB:,.1f}"
        _, _, *rest = _row(plan)
        table.add_row(plan.device.name, size, *rest, "" if plan.fits else "does not fit")
    return table


def stages_table(stages: Sequence[StageCost], price: float | None) -> Table:
    """Device-hours of the recipe."""
    table = _table(
        "stages of the recipe, each under its fastest layout that fits", "stage", "tokens",
        "layout", "MFU", "GPU-hours", "days", "cost" if price else "",
    )  # fmt: skip
    for stage in stages:
        if stage.plan is None or stage.hours is None:
            table.add_row(stage.name, f"{stage.tokens:.3g}", _why_none(stage.nearest))
            continue
        table.add_row(
            stage.name, f"{stage.tokens:.3g}", name_of(stage.plan.layout), f"{stage.plan.mfu:.1%}",
            f"{stage.hours:,.0f}", f"{stage.hours / stage.plan.layout.world_size / 24:,.1f}",
            f"{stage.cost:,.0f}" if stage.cost is not None else "",
        )  # fmt: skip
    return table


def _why_none(nearest: Plan | None) -> str:
    if nearest is None:
        return "none fits: fewer rows in a step than ranks"
    largest = max(nearest.memory.lines, key=lambda name: nearest.memory.lines[name])
    return (
        f"none fits: {name_of(nearest.layout)} takes {nearest.memory.total / GIB:,.0f} GiB, most of it "
        f"{largest}"
    )


def _row(plan: Plan) -> tuple[str, ...]:
    return (
        name_of(plan.layout), f"{plan.memory.total / GIB:,.1f}", f"{plan.step_s:.2f}",
        f"{plan.tokens_per_s:,.0f}", f"{plan.mfu:.1%}",
    )  # fmt: skip


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table
