"""Train a model: config -> model, module, data, trainer -> fit -> run folder.

python -m vlmkit.train
python -m vlmkit.train model=qwen3vl_8b fusion=deepstack
python -m vlmkit.train -m fusion=none,deepstack position=chunked,interleaved
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from vlmkit.build import build, build_model, entry_point, options_of
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.errors import ConfigError
from vlmkit.evaluation.chance import chance_level
from vlmkit.evaluation.plots import loss_curve, sample_sheet
from vlmkit.evaluation.samples import answer_samples
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.memory import check_fits, count_parameters
from vlmkit.training.precision import BFloat16Precision, check_precision
from vlmkit.training.vlm_module import VLMModule

log = logging.getLogger(__name__)


@entry_point("train")
def main(config: DictConfig) -> float:
    """Train, score before and after, and leave a run folder.

    Returns:
        Exact match on held-out questions at the end, for sweepers.
    """
    # Lightning's own, about torch's next version; nothing that a user could do
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    folder = RunFolder(config.run_dir)
    if folder.config.is_file():
        raise ConfigError(f"run_dir={folder.path} holds a run already; name another folder")
    L.seed_everything(config.seed, verbose=False)
    trainer: L.Trainer = build(
        config.trainer,
        logger=list(build(config.logger).values()),
        callbacks=list(build(config.callbacks).values()),
    )
    check_precision(trainer)
    model = model_that_fits(config, trainer)
    data: VLMDataModule = build(config.data)
    module: VLMModule = build(
        config.module,
        model=model,
        validation_names=list(data.validation),
        source_names=data.mixture.names,
    )
    check_vocabulary(model, data)
    describe(model)

    folder.path.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder.config, resolve=True)
    folder.save_environment()

    before = scores(trainer, module, data)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    after = scores(trainer, module, data)

    folder.save_weights(model, data.processor.tokenizer)
    if folder.metrics.is_file():  # a run of fewer than trainer.log_every_n_steps steps has none
        loss_curve(folder.metrics, folder.plots / "loss.png")
    if data.validation:
        report(folder, data, before, after, seconds)
        samples = answer_samples(model, data.processor, data.validation, per_source=3)
        sample_sheet(samples, folder.plots / "samples.png", columns=len(data.validation))
    if data.skips.counts:
        print(f"samples left out: {data.skips.summary()}; listed in {data.skips.file}")
    print(f"plots, weights and metrics: {folder.path}")
    print(f'ask it: python -m vlmkit.generate run={folder.path} image=<file> prompt="..."')
    return after.get("exact_match", float("nan"))


def model_that_fits(config: DictConfig, trainer: L.Trainer) -> Qwen3VL:
    """Build on meta, refuse what the device cannot hold, then build for real.

    Raises:
        DoesNotFitError: with the numbers, what would fit, and the flags to try.
    """
    device = trainer.strategy.root_device
    bf16 = isinstance(trainer.precision_plugin, BFloat16Precision)
    state = check_fits(
        build_model(config=config, device="meta"),
        device,
        bf16_weights=bf16,
        smaller=options_of("model"),
        parameters_of=lambda size: count_parameters(build_model(f"model={size}", device="meta")),
    )
    log.info("%d parameters; training state %.2f GiB", state.num_parameters, state.total_gib)
    model = build_model(config=config, device=device, dtype=torch.bfloat16 if bf16 else None)
    assert isinstance(model, Qwen3VL)
    return model


def check_vocabulary(model: Qwen3VL, data: VLMDataModule) -> None:
    """Refuse a tokenizer that writes ids which the embedding does not have.

    Raises:
        ConfigError: names both sizes.
    """
    ids, rows = data.processor.tokenizer.get_vocab_size(), model.decoder.vocab_size
    if ids > rows:
        raise ConfigError(
            f"the tokenizer has {ids} ids, the embedding {rows} rows: raise size.vocab_size, or lower "
            "size.vocab_ranks"
        )


def describe(model: Qwen3VL) -> None:
    """Print which part is what, and its size."""
    table = Table("part", "class", "parameters", box=None, header_style="bold")
    for name, part in model.named_children():
        table.add_row(name, type(part).__name__, f"{count_parameters(part):,}")
    Console().print(table)


def scores(trainer: L.Trainer, module: VLMModule, data: VLMDataModule) -> dict[str, float]:
    """Validation metrics by their short names: `exact_match`, `<source>/exact_match`, ..."""
    if not data.validation:
        return {}
    trainer.validate(module, data, verbose=False)
    metrics: Mapping[str, Any] = trainer.callback_metrics
    return {
        key.removeprefix("val/"): float(value)
        for key, value in metrics.items()
        if key.startswith("val/")
    }


def report(
    folder: RunFolder,
    data: VLMDataModule,
    before: dict[str, float],
    after: dict[str, float],
    seconds: float,
) -> None:
    """Print exact match before and after beside chance, and write it to `results.json`."""
    table = Table(
        "held-out questions", "n", "chance", "before", "after",
        title=f"exact match; trained {seconds / 60:.1f} minutes", title_justify="left",
    )  # fmt: skip
    rows: dict[str, Any] = {}
    for name, source in data.validation.items():
        key = f"{name}/exact_match"
        row = {
            "n": len(source),  # type: ignore[arg-type]
            "chance": chance_level(source),
            "before": before[key],
            "after": after[key],
        }
        rows[name] = row
        table.add_row(
            name, str(row["n"]), *(f"{row[k]:.1%}" for k in ("chance", "before", "after"))
        )
    rows["mean"] = {
        "chance": sum(row["chance"] for row in rows.values()) / len(rows),
        "before": before["exact_match"],
        "after": after["exact_match"],
    }
    mean = rows["mean"]
    table.add_section()
    table.add_row("mean", "", *(f"{mean[k]:.1%}" for k in ("chance", "before", "after")))
    Console().print(table)
    print("chance: the score of always giving the most frequent answer")
    folder.save_results({"train_seconds": seconds, "exact_match": rows})


if __name__ == "__main__":
    main()
