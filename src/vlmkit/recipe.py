"""A chain of training stages: print it, then run it or go on with it.

python -m vlmkit.recipe
python -m vlmkit.recipe recipe=qwen3vl size=qwen3vl_8b data_root=<folder> run_dir=runs/8b
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from vlmkit.build import build, build_model, compose_config, entry_point, job_config_dir
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.evaluation.stage_plot import stage_plot
from vlmkit.job import is_rank_zero
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.train import train
from vlmkit.training.meters.flops import flops_per_token
from vlmkit.training.policy import TrainingPolicy


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One link of the chain."""

    name: str
    config: DictConfig
    folder: RunFolder

    @property
    def is_finished(self) -> bool:
        """Whether it has trained all its steps and left its weights."""
        return self.folder.is_finished


@entry_point("recipe")
def main(config: DictConfig) -> None:
    """Print the chain; train what has not been trained; show what each stage did."""
    stages = compose_stages(config, job_config_dir())
    if is_rank_zero():
        print_chain(stages, config)
    if config.plan_only:
        return
    for number, stage in enumerate(stages, start=1):
        heading = f"stage {number} of {len(stages)}: {stage.name}"
        if stage.is_finished:
            print(f"{heading} is finished ({stage.folder.path})")
            continue
        print(f"\n{heading}")
        start = time.perf_counter()
        train(stage.config)
        print(f"{heading}: {(time.perf_counter() - start) / 60:.1f} minutes")
    if not is_rank_zero():
        return
    print_changes(stages)
    if config.panels:
        path = Path(config.run_dir) / "stages.png"
        results = {stage.name: stage.folder.read_results() for stage in stages}
        stage_plot(results, OmegaConf.to_container(config.panels), path)  # type: ignore[arg-type]
        print(f"what each stage did: {path}")


def compose_stages(config: DictConfig, config_dir: str | None = None) -> list[Stage]:
    """The config of every stage, each beginning with what the one before leaves.

    Args:
        config: of the recipe.
        config_dir: further configs that stages may choose from.

    Raises:
        ConfigError: an override of a stage does not exist.
    """
    stages: list[Stage] = []
    before = config.get("start_from")
    for number, (name, stage) in enumerate(config.stages.items()):
        folder = RunFolder(Path(config.run_dir) / f"{number}-{name}")
        own = compose_config(
            *stage.overrides,
            *config.overrides,
            f"run_dir={folder.path}",
            "resume=true",
            config_dir=config_dir,
        )
        own.start_from.folder = before and str(before)
        own.start_from.only = stage.takes
        stages.append(Stage(name=str(name), config=own, folder=folder))
        before = folder.path
    return stages


def print_chain(stages: list[Stage], config: DictConfig) -> None:
    """What trains in each stage, on how much, and how long that takes."""
    assume = config.get("assume")
    table = Table("stage", "trains", "row tokens", "steps", "tokens", box=None, header_style="bold")
    if assume:
        table.add_column("GPU-hours")
    for stage in stages:
        own = stage.config
        model = build_model(config=own, device="meta")
        policy: TrainingPolicy = build(own.weight_update.policy)
        policy.freeze(model)
        trained = [line.component for line in policy.summary(model) if line.num_trained]
        steps = int(own.trainer.max_steps)
        tokens = steps * int(own.planner.get("rows_per_step", 0)) * int(own.data.rows.row_tokens)
        cells = [stage.name, ", ".join(trained), f"{own.data.rows.row_tokens:,}", f"{steps:,}"]
        cells.append(f"{tokens:.3g}" if tokens else "")
        if assume and isinstance(model, Qwen3VL):
            flops = flops_per_token(
                model,
                row_tokens=int(own.data.rows.row_tokens),
                visual_share=assume.visual_share,
                scored_share=assume.scored_share,
            ).total
            hours = flops * tokens / (assume.peak_tflops * 1e12 * assume.mfu) / 3600
            cells.append(f"{hours:,.0f}")
        table.add_row(*cells)
    Console().print(table)
    if assume:
        print(
            f"GPU-hours: {assume.peak_tflops:g} TFLOP/s at {assume.mfu:.0%} of the peak, "
            f"{assume.visual_share:.0%} of the tokens visual, {assume.scored_share:.0%} scored"
        )


def print_changes(stages: list[Stage]) -> None:
    """Which components each stage has left bit for bit as they were."""
    table = Table("stage", "changed", "untouched (SHA-256 equal)", box=None, header_style="bold")
    for stage in stages:
        changes: dict[str, Any] = stage.folder.read_results()["components"]
        changed = [
            name for name, digests in changes.items() if digests["before"] != digests["after"]
        ]
        same = [name for name in changes if name not in changed]
        table.add_row(stage.name, ", ".join(changed), ", ".join(same))
    Console().print(table)


if __name__ == "__main__":
    main()
