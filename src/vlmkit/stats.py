"""What the data hold and what training will make of them, from headers alone: no picture is decoded.

python -m vlmkit.stats data=... out=stats
python -m vlmkit.stats data=... out=stats write_sizes=true
python -m vlmkit.train data=... data.mixture.sizes=stats/sizes
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from vlmkit.build import build, entry_point
from vlmkit.data.geometry.lint import LintReport
from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.samples import Samples, table_key
from vlmkit.data.order.steps import StepPlanner
from vlmkit.data.processor import Plan, Processor
from vlmkit.data.rows import Rows
from vlmkit.data.sizes.forecast import forecast
from vlmkit.data.sizes.measure import Measuring, evenly_spaced
from vlmkit.data.sizes.measured import Measured
from vlmkit.data.sizes.size_table import REASONS, is_measurable
from vlmkit.data.sizes.summary import Numbers, summarise
from vlmkit.errors import ConfigError, DataError, Reason, listed
from vlmkit.evaluation.data_figure import data_figure
from vlmkit.evaluation.data_tables import data_tables

ALL_UP_TO = 20_000
"""Samples of a source up to which all are measured without being asked to."""

SOME = 1_000
"""Samples that stand for a larger source, and that are searched for coordinates."""

HELD_OUT = "val/"


@entry_point("stats")
def main(config: DictConfig) -> None:
    """Measure, describe, forecast."""
    out = Path(config.out)
    processor: Processor = build(config.data.processor)
    rows: Rows = build(config.data.rows)
    training: dict[str, Weighted] = {
        str(name): build(node) for name, node in config.data.mixture.parts.items()
    }
    held_out = {
        f"{HELD_OUT}{name}": Weighted(source=build(node))
        for name, node in config.data.validation.items()
    }
    parts = chosen({**training, **held_out}, config.sources)
    counts = {
        name: _count(name, part, config.limit, config.write_sizes and name in training)
        for name, part in parts.items()
    }
    measured: dict[str, Measured] = {}
    measuring = Measuring(parts, processor, rows.limits, config.workers, out / "measured")
    try:
        with measuring:
            for name, part in parts.items():
                positions = evenly_spaced(len(part.source), counts[name])
                measured[name] = measuring.source(name, positions)
                if config.write_sizes and name in training:
                    key = table_key(part, processor, rows.limits)
                    measured[name].table(key).save(out / "sizes" / f"{name}.parquet")
    except KeyboardInterrupt:
        print("interrupted; what is measured is kept, and the same command goes on from there")
        raise SystemExit(130) from None

    numbers: dict[str, Any] = {
        "row_tokens": rows.row_tokens,
        "row_patches": rows.row_patches,
        "sources": {
            name: describe(name, part, measured[name], processor, rows)
            for name, part in parts.items()
        },
    }
    if all(name in parts for name in training):
        numbers |= foresee(config, training, measured, processor, rows)
    lint = coordinates(parts, measured)
    numbers["coordinates"] = {
        name: {
            "samples": found.num_samples,
            "shapes": found.num_shapes,
            "space": str(found.verdict()),
            "findings": {finding.value: n for finding, n in found.findings.items()},
        }
        for name, found in lint.sources.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "stats.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    data_figure(measured, rows.row_tokens, out / "lengths.png")
    console = Console()
    for table in data_tables(numbers):
        console.print(table)
    if any(found.num_shapes or found.findings for found in lint.sources.values()):
        console.print(lint.table())
    if "error" in numbers.get("training", {}):
        print(f"training would not work: {numbers['training']['error']}")
    print(f"numbers: {out / 'stats.json'}; histograms: {out / 'lengths.png'}")
    if config.write_sizes:
        print(f"sizes for training: data.mixture.sizes={(out / 'sizes').absolute()}")


def chosen(parts: Mapping[str, Weighted], names: Iterable[str] | None) -> dict[str, Weighted]:
    """The sources that are asked for.

    Raises:
        ConfigError: there are none, or none of a name.
    """
    short = {name.removeprefix(HELD_OUT) for name in parts} | set(parts)
    wanted = short if names is None else {str(name) for name in names}
    if unknown := sorted(wanted - short):
        raise ConfigError(f"sources: there is no {listed(unknown)}; there are {listed(parts)}")
    found = {
        name: part for name, part in parts.items() if {name, name.removeprefix(HELD_OUT)} & wanted
    }
    if not found:
        raise ConfigError("there are no sources: name data, such as data=quickstart")
    return found


def _count(name: str, part: Weighted, limit: int | None, whole: bool) -> int:
    """How many samples of a source are measured."""
    size = len(part.source)
    if not whole:
        return min(size, limit or (size if size <= ALL_UP_TO else SOME))
    if limit is not None:
        raise ConfigError("write_sizes=true measures all samples: leave limit out")
    if not is_measurable(part.source):
        raise ConfigError(
            f"{name} has {size:,} samples: it makes them up, and they are not measured one by one. Leave "
            "it out of sources=[...]; training plans its samples from headers"
        )
    return size


def describe(
    name: str, part: Weighted, measured: Measured, processor: Processor, rows: Rows
) -> Numbers:
    """Numbers of a source, with examples of what cannot be used or does not fit."""
    remedies = [type(remedy).__name__ for remedy in part.over_length]
    numbers = summarise(measured, len(part.source), remedies)
    numbers["endless"] = not is_measurable(part.source)
    if len(part.source):
        alone = Mixture({name: replace(part, weight=1, temperature=None, sizes=None)})
        samples = Samples(alone, processor, rows.limits)
        numbers["examples"] = {
            str(reason): _example(samples, name, measured, reason) for reason in measured.reasons()
        }
    columns = measured.samples
    too_long = columns.code == REASONS.index(Reason.TOO_LONG) + 1
    long = columns[(columns.remedy > 0) | too_long]
    numbers["longer_than_a_row"]["examples"] = [
        {
            "origin": part.source[int(long.position[i])].origin or f"{name}[{long.position[i]}]",
            "tokens": int(long.whole_tokens[i]),
            "patches": int(long.whole_patches[i]),
            "fitted_tokens": int(long.tokens[i]),
            "by": remedies[long.remedy[i] - 1] if long.remedy[i] else None,
        }
        for i in np.argsort(-long.whole_tokens, kind="stable")[:3]
    ]
    return numbers


def _example(samples: Samples, name: str, measured: Measured, reason: Reason) -> str:
    """What is wrong with the first sample that cannot be used for a reason."""
    columns = measured.samples
    position = int(columns.position[columns.code == REASONS.index(reason) + 1][0])
    found = samples.plan_of(name, samples.mixture.parts[name], position, position)
    return f"{name}[{position}]" if isinstance(found, Plan) else found.message


def foresee(
    config: DictConfig,
    training: Mapping[str, Weighted],
    measured: Mapping[str, Measured],
    processor: Processor,
    rows: Rows,
) -> Numbers:
    """Shares of the sources, and what steps will be like."""
    tables = {
        name: replace(part, sizes=measured[name].table(table_key(part, processor, rows.limits)))
        for name, part in training.items()
    }
    planner: StepPlanner = build(config.data.planner)
    try:
        mixture: Mixture = build(config.data.mixture, parts=tables, sizes=None)
        steps = forecast(mixture, measured, processor, rows, planner)
    except ConfigError as error:
        return {"training": {"error": str(error)}}
    drawn = steps["samples_per_step"] * config.data.num_steps
    tokens = {
        name: float(part.samples.tokens.mean()) if len(part) else 0.0
        for name, part in measured.items()
    }
    shares = dict(zip(mixture.names, mixture.shares.tolist(), strict=True))
    mean = sum(shares[name] * tokens[name] for name in shares)
    return {
        "training": {
            "planner": type(planner).__name__,
            "rows_per_micro_batch": rows.rows_per_micro_batch,
            "num_steps": config.data.num_steps,
            **steps,
            "mixture": {
                name: {
                    "share_of_samples": shares[name],
                    "share_of_tokens": float(shares[name] * tokens[name] / mean) if mean else 0.0,
                    "epochs_of_the_run": drawn * shares[name] / len(part.source)
                    if is_measurable(part.source)
                    else None,
                }
                for name, part in training.items()
            },
        }
    }


def coordinates(parts: Mapping[str, Weighted], measured: Mapping[str, Measured]) -> LintReport:
    """Look at the boxes and points that samples hold, and at what space they are written in."""
    report = LintReport()
    for name, part in parts.items():
        positions = measured[name].samples.position[measured[name].usable]
        for place in evenly_spaced(len(positions), SOME).tolist():
            try:
                report.add(replace(part.source[int(positions[place])], source=name))
            except DataError:  # a file went away since
                continue
    return report


if __name__ == "__main__":
    main()
