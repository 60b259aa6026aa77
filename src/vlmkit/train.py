"""Train a model: config -> parts -> fit -> run folder.

python -m vlmkit.train
python -m vlmkit.train model=qwen3vl_8b fusion=deepstack
python -m vlmkit.train -m fusion=none,deepstack position=chunked,interleaved
python -m vlmkit.train run=<run folder>        # go on where it stopped
python -m vlmkit.train dry_run=true            # what it would take, as vlmkit.plan
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from vlmkit.build import entry_point, is_single_run, job_overrides
from vlmkit.checkpoint.folder import CheckpointFolder
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.errors import ConfigError
from vlmkit.evaluation.chance import chance_level
from vlmkit.evaluation.plots import loss_curve, sample_sheet
from vlmkit.evaluation.samples import answer_samples
from vlmkit.job import TrainingJob, assemble, check_run_folder_is_shared, is_rank_zero
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.plan import comparison, planned, show
from vlmkit.runs import resumed_config
from vlmkit.training.component_digests import RecordDigests, component_digests
from vlmkit.training.lora import merge_lora
from vlmkit.training.vlm_module import VLMModule

log = logging.getLogger(__name__)


@entry_point("train")
def main(config: DictConfig) -> float:
    """Train, score before and after, and leave a run folder.

    Returns:
        Exact match on held-out questions at the end, for sweepers.
    """
    if config.run is not None:
        changes = [text for text in job_overrides() if not text.startswith("run=")]
        config = resumed_config(config.run, changes)
    if config.dry_run:
        show(planned(config), config)
        return float("nan")
    if is_single_run():  # a sweep names the folders of its jobs once
        check_run_folder_is_shared(config)
    if not is_rank_zero():  # what all ranks know, one of them says
        logging.getLogger("vlmkit").setLevel(logging.WARNING)
    return train(config).get("exact_match", float("nan"))


def train(config: DictConfig) -> dict[str, float]:
    """Run a job, or go on with it, until it is done.

    Returns:
        Scores on held-out samples at the end.

    Raises:
        UserError: the job cannot run; says why and what would help.
        SystemExit: with code 75 (`vlmkit.training.survival.signals.RESUMABLE`), when a signal has stopped it.
    """
    # Lightning's own, about torch's next version; nothing that a user could do
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # it looks for a loader with a state; ours is the data module's
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    # metrics are summed over ranks by torchmetrics, before they are logged
    warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*all_gather is deprecated.*")  # Lightning's call
    warnings.filterwarnings("ignore", message=".*You have overridden `transfer_batch_to_device`.*")
    folder = RunFolder(config.run_dir)
    checkpoint = checkpoint_to_resume(folder, config)
    if (
        checkpoint is not None
        and folder.is_finished
        and checkpoint.step >= config.trainer.max_steps
    ):
        print(
            f"{folder.path} has trained its {checkpoint.step} steps: trainer.max_steps=<more> goes on"
        )
        found: dict[str, float] = folder.read_results().get("after", {})
        return found
    job = assemble(config, is_resumed=checkpoint is not None)
    describe(job)
    if (compared := comparison(config, job.trainer)) is not None:
        job.trainer.callbacks.append(compared)  # type: ignore[attr-defined]
    leads = job.trainer.is_global_zero
    first_step = checkpoint.step if checkpoint else 0
    if leads:
        prepare(job)
        folder.forget_metrics_from(first_step)
    if checkpoint is None:
        before = scores(job) if config.score_before else {}
        if leads:
            folder.save_results(before=before, train_seconds=0.0)
        recorder = RecordDigests(lambda digests: folder.save_results(digests=digests))
        job.trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
    elif leads:
        print(f"going on from step {first_step} ({checkpoint.path})")

    start = time.perf_counter()
    try:
        job.trainer.fit(
            job.module, job.data, ckpt_path=str(checkpoint.path) if checkpoint else None
        )
    finally:
        if leads:
            so_far = folder.read_results()["train_seconds"]
            folder.save_results(train_seconds=so_far + time.perf_counter() - start)
    return finish(job)


def checkpoint_to_resume(folder: RunFolder, config: DictConfig) -> CheckpointFolder | None:
    """The newest sound checkpoint of the run, if it is to go on and has one.

    Raises:
        ConfigError: the folder holds a run, and nothing was said about going on with it.
    """
    if not folder.config.is_file():
        return None
    if not config.resume:
        if not is_rank_zero():
            return None  # rank 0 has just begun the run, or is refusing it
        raise ConfigError(
            f"run_dir={folder.path} holds a run already: run={folder.path} goes on with it, resume=true "
            "starts or goes on; or name another folder"
        )
    store = CheckpointStore(folder.checkpoints)
    if is_rank_zero():
        store.clean()
    return store.newest()


def prepare(job: TrainingJob) -> None:
    """Write what a run is, before it begins."""
    folder = job.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(job.config, folder.config, resolve=True)
    OmegaConf.save(job.config, folder.resumable_config)
    folder.save_tokenizer(job.data.processor.tokenizer)


def describe(job: TrainingJob) -> None:
    """Print which component is how large, and how it is trained."""
    if not job.trainer.is_global_zero:
        return
    table = Table("component", "parameters", "trained", "learning rate", "weight decay", box=None)
    for line in job.module.update.policy.summary(job.module.model):
        frozen = line.learning_rate is None
        table.add_row(
            line.component,
            f"{line.num_parameters:,}",
            f"{line.num_trained:,}",
            "frozen" if frozen else f"{line.learning_rate:g}",
            "" if frozen else f"{line.weight_decay:g}",
        )
    Console().print(table)


def scores(job: TrainingJob) -> dict[str, float]:
    """Validation metrics by their short names: `exact_match`, `<source>/exact_match`, ..."""
    if not job.data.validation:
        return {}
    job.trainer.validate(job.module, job.data, verbose=False)
    metrics: Mapping[str, Any] = job.trainer.callback_metrics
    return {
        key.removeprefix("val/"): float(value)
        for key, value in metrics.items()
        if key.startswith("val/")
    }


def finish(job: TrainingJob) -> dict[str, float]:
    """Score, write the weights, which say that the run is finished, and draw."""
    folder, data = job.folder, job.data
    after = scores(job)
    now = component_digests(job.module.model)
    per_source = job.config.samples_per_source if data.validation else 0
    # answers and merged adapters take a whole model; divided weights alone are written without one
    takes_whole = not job.is_divided or bool(per_source) or job.config.lora is not None
    model = job.whole_model() if takes_whole else None
    leads = job.trainer.is_global_zero
    if leads:
        digests = folder.read_results()["digests"]
        changes = {name: {"before": digests[name], "after": now[name]} for name in now}
        folder.save_results(after=after, components=changes)
        if data.validation and isinstance(job.module, VLMModule):
            report(job)
    if model is not None and leads and job.config.lora is not None:
        merge_lora(model)
    if model is None or leads:
        job.export(model)
    if not leads:
        job.trainer.strategy.barrier()  # what comes next may read what rank 0 writes
        return after
    if folder.metrics.is_file():  # a run of fewer than trainer.log_every_n_steps steps has none
        loss_curve(folder.metrics, folder.plots / "loss.png")
    if per_source and isinstance(model, Qwen3VL):
        samples = answer_samples(model, data.processor, data.validation, per_source=per_source)
        sample_sheet(samples, folder.plots / "samples.png", columns=len(data.validation))
    if data.skips.counts:
        print(f"samples left out: {data.skips.summary()}; listed in {data.skips.file}")
    print(f"plots, weights and metrics: {folder.path}")
    print(f'ask it: python -m vlmkit.generate run={folder.path} image=<file> prompt="..."')
    job.trainer.strategy.barrier()
    return after


def report(job: TrainingJob) -> None:
    """Print exact match before and after beside chance, and add it to `results.json`."""
    results = job.folder.read_results()
    before, after, seconds = results["before"], results["after"], results["train_seconds"]
    table = Table(
        "held-out questions", "n", "chance", "before", "after",
        title=f"exact match; trained {seconds / 60:.1f} minutes", title_justify="left",
    )  # fmt: skip
    rows: dict[str, Any] = {}
    for name, source in job.data.validation.items():
        key = f"{name}/exact_match"
        row = {
            "n": len(source),  # type: ignore[arg-type]
            "chance": chance_level(source),
            "before": before.get(key),
            "after": after[key],
        }
        rows[name] = row
        table.add_row(name, str(row["n"]), *_percents(row))
    rows["mean"] = {
        "chance": sum(row["chance"] for row in rows.values()) / len(rows),
        "before": before.get("exact_match"),
        "after": after["exact_match"],
    }
    table.add_section()
    table.add_row("mean", "", *_percents(rows["mean"]))
    Console().print(table)
    print("chance: the score of always giving the most frequent answer")
    job.folder.save_results(exact_match=rows)


def _percents(row: Mapping[str, float | None]) -> list[str]:
    values = (row[key] for key in ("chance", "before", "after"))
    return ["" if value is None else f"{value:.1%}" for value in values]


if __name__ == "__main__":
    main()
