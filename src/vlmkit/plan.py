"""What a run would need, how fast it would be and what it would cost: no weights, no GPU, seconds.

python -m vlmkit.plan model=qwen3vl_8b parallel=fsdp precision=bf16_mixed planning.ranks=8
python -m vlmkit.plan model=qwen3vl_235b_a22b parallel=recommended_235b_a22b stage=s1_multimodal gpu=h200
python -m vlmkit.train ... dry_run=true
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from vlmkit.build import (
    build,
    build_model,
    compose_config,
    entry_point,
    job_config_dir,
    job_overrides,
    options_of,
)
from vlmkit.data.order.samples import table_key
from vlmkit.data.rows import Rows
from vlmkit.data.sizes.measure import Measuring, evenly_spaced
from vlmkit.errors import ConfigError, UserError
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.planning import tables
from vlmkit.planning.comparison import PredictedAndMeasured, Prediction
from vlmkit.planning.device import Device
from vlmkit.planning.host import host_device
from vlmkit.planning.micro_batch import AssumedMix, MicroBatch, measured_micro_batch
from vlmkit.planning.planner import Plan, Planner, on, parameters
from vlmkit.planning.search import Found, search
from vlmkit.planning.state import Precision, moment_bytes
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.policy import TrainingPolicy
from vlmkit.training.precision import BFloat16Precision, Float8Precision

FEWEST_TOKENS = 2048
"""Of a row on each context rank, where the search divides rows."""
MOST_CONTEXT = 16

PER_SAMPLE = {"stage", "data"}
"""Groups that stages of the recipe choose for themselves."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """All that is printed and written."""

    planner: Planner
    plan: Plan
    found: Found | None
    others: list[Plan]
    stages: list[tables.StageCost]

    def as_json(self) -> dict[str, Any]:
        """All numbers, plain."""
        return {
            "parameters": parameters(self.planner.model),
            "data": self.planner.micro.source,
            "plan": self.plan.as_json(),
            "fastest": [plan.as_json() for plan in self.found.fitting[:20]] if self.found else [],
            "devices": [plan.as_json() for plan in self.others],
            "stages": [
                {
                    "name": stage.name,
                    "tokens": stage.tokens,
                    "gpu_hours": stage.hours,
                    "cost": stage.cost,
                    "plan": stage.plan.as_json() if stage.plan else None,
                }
                for stage in self.stages
            ],
        }


@entry_point("plan")
def main(config: DictConfig) -> None:
    """Plan, print, and write `plan.json`."""
    show(planned(config, job_overrides(), job_config_dir()), config)


def planned(
    config: DictConfig, overrides: list[str] | None = None, config_dir: str | None = None
) -> PlannedRun:
    """Plan a run, other layouts of as many ranks, other devices and the stages of the recipe.

    Args:
        config: of the run.
        overrides: that stages are composed with.
        config_dir: further configs that stages may choose from.

    Raises:
        ConfigError: the layout does not go with the model or the number of ranks.
    """
    planner = planner_for(config)
    layout: Layout = build(config.parallel)
    ranks = ranks_of(config, layout, planner.device)
    layout = layout.for_ranks(ranks)
    plan = planner.plan(layout)
    progress = Console(stderr=True)
    found = None
    if config.planning.search:
        with progress.status(f"other layouts of {ranks} ranks"):
            found = best_layouts(planner, ranks)
    devices = [
        device
        for name in options_of("gpu")
        if (device := build(compose_config(f"gpu={name}").gpu)).name != planner.device.name
    ]
    others = [plan, *(on(planner, device).plan(layout) for device in devices)]
    stages = []
    for name in config.planning.stages:
        with progress.status(f"layouts for {name}"):
            stages.append(_stage(name, overrides or [], ranks, config_dir, config.planning.mix))
    return PlannedRun(planner=planner, plan=plan, found=found, others=others, stages=stages)


def best_layouts(planner: Planner, ranks: int, leaders: int = 12) -> Found:
    """Search, but do not cut rows into pieces that are too short to be worth it."""
    row = planner.micro.tokens // planner.rows_per_micro_batch
    most_context = min(max(row // FEWEST_TOKENS, 1), MOST_CONTEXT)
    return search(planner, ranks, leaders=leaders, most_context=most_context)


def show(run: PlannedRun, config: DictConfig) -> None:
    """Print, and write `plan.json` into the run folder."""
    console = Console()
    plan, model = run.plan, run.planner.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{parameters(model):,} parameters, {trained:,} trained; {run.planner.precision.weights} weights"
        f"{', products in bfloat16' if run.planner.precision.autocast else ''}\n"
        f"{plan.layout.world_size} x {plan.device.name}; data: {run.planner.micro.source}"
    )
    for table in (
        tables.memory_table(plan), tables.phases_table(plan), tables.flops_table(plan),
        tables.traffic_table(plan), tables.time_table(plan), tables.devices_table(run.others),
    ):  # fmt: skip
        console.print(table)
    if run.found is not None:
        console.print(tables.layouts_table(run.found, config.planning.top))
    if run.stages:
        console.print(tables.stages_table(run.stages, plan.device.price_per_hour))
    device = plan.device
    print(
        f"assumed: {device.achievable:.0%} of {device.peak_tflops:g} TFLOP/s in matrix products, "
        f"{device.overlap:.0%} of the compute time hides gathers and reductions of weights, "
        f"{device.usable:.0%} of the memory for tensors; gpu.<name>=<value> changes it"
    )
    file = Path(config.run_dir) / "plan.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(run.as_json(), indent=1) + "\n")
    print(f"numbers: {file}")


def comparison(config: DictConfig, trainer: L.Trainer) -> PredictedAndMeasured | None:
    """What says at the end of a run how far its plan was; None where it is not asked for.

    The plan is for the configured device, or, where the GPU is another one of conf/gpu, for that; on a CPU,
    for this one.
    """
    cuda = trainer.strategy.root_device.type == "cuda"
    if not (cuda if config.planning.compare is None else config.planning.compare):
        return None
    planner = planner_for(config)
    if cuda:
        here = torch.cuda.get_device_name().split()
        for name in options_of("gpu"):
            device: Device = build(compose_config(f"gpu={name}").gpu)
            if device.name in here:
                planner = on(planner, device)
    else:
        planner = on(planner, host_device(planner.precision.compute))
    layout: Layout = build(config.parallel)
    plan = planner.plan(layout.for_ranks(trainer.world_size))
    micro_batches = plan.micro_batches * plan.layout.num_data_ranks
    return PredictedAndMeasured(
        Prediction(
            step_s=plan.step_s,
            flops_per_step=plan.flops.total * micro_batches,
            peak_bytes=plan.memory.total,
        ),
        # compiled code drops tensors that nobody sees it make
        watches_host=not cuda and trainer.world_size == 1 and not config.compile,
    )


def planner_for(config: DictConfig, mix: Any = None) -> Planner:
    """The planner of a run's model, data and device.

    Args:
        config: of the run.
        mix: assumed instead of reading the data's headers; None reads them.

    Raises:
        ConfigError: the model is of another kind.
    """
    model = build_model(config=config, device="meta")
    if not isinstance(model, Qwen3VL):
        raise ConfigError(f"{type(model).__name__} cannot be planned; take a model of conf/model")
    if (adapters := build(config.lora)) is not None:
        adapters(model)
    policy: TrainingPolicy = build(config.weight_update.policy)
    policy.freeze(model)
    precision = precision_of(config)
    model.to(precision.weights)
    rows: Rows = build(config.data.rows)
    if mix is None and config.planning.samples:
        micro = micro_batch_of(config, rows, model.merger.merge_size)
        most = config.planner.get("samples_per_step")
        if most is not None and len(micro.lengths) > most:  # a step fills no whole row
            tokens = max(sum(micro.lengths) * most // len(micro.lengths), 1)
            rows = replace(rows, row_tokens=tokens, rows_per_micro_batch=1)
            micro = micro_batch_of(config, rows, model.merger.merge_size)
    else:
        assumed: AssumedMix = build(mix or config.planning.mix)
        micro = assumed.micro_batch(rows, model.merger.merge_size)
    return Planner(
        model=model,
        micro=micro,
        rows_per_step=rows_per_step(config, micro, rows),
        rows_per_micro_batch=rows.rows_per_micro_batch,
        precision=precision,
        moments=moment_bytes(model, policy, build(config.optim.optimizer), precision.weights),
        loss=build(config.module.loss),
        device=build(config.gpu),
        recompute=(config.recompute.decoder_every, config.recompute.vision_every)
        if config.recompute
        else (0, 0),
    )


def precision_of(config: DictConfig) -> Precision:
    """What the trainer's precision makes of weights and matrix products; float8 is planned as bfloat16."""
    names = {str(p._target_).rpartition(".")[2] for p in config.trainer.get("plugins") or []}
    if BFloat16Precision.__name__ in names:
        return Precision(weights=torch.bfloat16, autocast=False)
    mixed = str(config.trainer.precision).endswith("-mixed")
    return Precision(weights=torch.float32, autocast=mixed or Float8Precision.__name__ in names)


def micro_batch_of(config: DictConfig, rows: Rows, merge_size: int) -> MicroBatch:
    """From headers of the configured data, or, where they cannot be read, as assumed; it says which."""
    try:
        return _measured(config, rows)
    except (UserError, OmegaConfBaseException, OSError) as error:
        assumed: AssumedMix = build(config.planning.mix)
        found = assumed.micro_batch(rows, merge_size)
        why = str(error).splitlines()[0]
        return replace(found, source=f"{found.source}; the data could not be read ({why})")


def _measured(config: DictConfig, rows: Rows) -> MicroBatch:
    processor = build(config.data.processor)
    parts = {str(name): build(node) for name, node in config.data.mixture.parts.items()}
    if not parts:
        raise ConfigError("there are no sources")
    with Measuring(parts, processor, rows.limits, workers=0) as measuring:
        measured = {
            name: measuring.source(
                name,
                evenly_spaced(len(part.source), min(len(part.source), config.planning.samples)),
            )
            for name, part in parts.items()
        }
    named = {
        name: replace(part, sizes=measured[name].table(table_key(part, processor, rows.limits)))
        for name, part in parts.items()
    }
    mixture = build(config.data.mixture, parts=named, sizes=None)
    return measured_micro_batch(measured, mixture, rows)


def rows_per_step(config: DictConfig, micro: MicroBatch, rows: Rows) -> float:
    """Of all ranks; where samples are counted, rows that they fill."""
    if (number := config.planner.get("rows_per_step")) is not None:
        return float(number)
    filled = max(len(micro.lengths), 1) / rows.rows_per_micro_batch
    return float(config.planner.samples_per_step) / filled


def ranks_of(config: DictConfig, layout: Layout, device: Device) -> int:
    """How many devices are planned for."""
    if config.planning.ranks is not None:
        return int(config.planning.ranks)
    if not layout.is_open:
        return layout.world_size
    devices = config.trainer.devices
    return (devices if isinstance(devices, int) else device.devices_per_node) * int(
        config.trainer.num_nodes
    )


def _stage(
    name: str, overrides: list[str], ranks: int, config_dir: str | None, mix: Any
) -> tables.StageCost:
    kept = [
        text
        for text in overrides
        if (key := text.lstrip("+~").partition("=")[0]) not in PER_SAMPLE
        and not key.startswith(("data", "stage.", "planner", "report"))
    ]
    config = compose_config(
        *kept, f"stage={name}", "data_root=none", config_name="plan", config_dir=config_dir
    )
    planner = planner_for(config, mix)
    found = best_layouts(planner, ranks, leaders=1)
    return tables.StageCost(
        name=name,
        tokens=float(config.stage.tokens),
        plan=found.fitting[0] if found.fitting else None,
        nearest=found.too_large[0] if found.too_large else None,
    )


if __name__ == "__main__":
    main()
