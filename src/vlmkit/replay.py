"""Take a step again that went wrong: the same weights, samples and random numbers.

python -m vlmkit.replay incident=<run>/incidents/step-00000123-rank0.json
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import math
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.plugins import Precision
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vlmkit.batch import StepBatch
from vlmkit.build import build, build_model, entry_point
from vlmkit.checkpoint.folder import CheckpointFolder
from vlmkit.checkpoint.own_weights import fill_from_own
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.job import CHANGES
from vlmkit.losses.base import Loss, LossOutput
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.runs import build_processor, read_config
from vlmkit.training.first_nonfinite import FirstNonFinite
from vlmkit.training.policy import components_of
from vlmkit.training.precision import BFloat16Precision
from vlmkit.training.stepped_module import seed_of_step
from vlmkit.training.survival.incidents import Incident, digests, read_incident


@dataclass(frozen=True, kw_only=True)
class SampleLoss:
    """What a sample of the step has come to."""

    source: str
    key: int
    origin: str
    micro_batch: int
    mean_nll: float  # over its scored tokens, in nats


@entry_point("replay")
def main(config: DictConfig) -> None:
    """Print the loss of each sample, gradient norms, and where the first non-finite number arose."""
    incident = read_incident(config.incident)
    folder = RunFolder(Path(config.incident).resolve().parents[1])
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    console = Console()
    console.print(
        f"step {incident.step}, rank {incident.rank} of {incident.world_size}: {incident.reason}",
        markup=False,
    )
    weights, are_exact = weights_of(incident, Path(config.incident), folder, config.weights)
    if not are_exact:
        console.print(
            f"weights of the step were not kept: these are {weights}, so numbers will differ"
        )
    run_config = read_config(folder)
    precision = precision_of(run_config, device)
    bf16 = isinstance(precision, BFloat16Precision)
    model = build_model(config=run_config, device=device, dtype=torch.bfloat16 if bf16 else None)
    if not isinstance(model, Qwen3VL):
        raise ConfigError(
            f"{folder.path} trains a {type(model).__name__}: only steps of next-token training can be "
            "taken again"
        )
    for name in ("lora", *CHANGES):
        if (change := build(run_config[name])) is not None:
            change(model)
    fill_from_own(model, weights)
    data: VLMDataModule = build(
        run_config.data, processor=build_processor(run_config, folder), skips=None
    )
    batch = batch_of(incident, data)
    same = digests(batch) == list(incident.digests)
    print("tokens and pixels are " + ("those of the step" if same else "NOT those of the step"))
    build(run_config.weight_update.policy).freeze(model)
    torch.manual_seed(seed_of_step(incident.seed, incident.step, incident.rank))
    with precision.forward_context():
        samples, norms, first = take(model, build(run_config.loss), batch.to(device))
    console.print(table_of(samples))
    console.print(norms_table(norms, incident))
    print(f"first number that is not finite: {first or 'none'}")


def precision_of(config: DictConfig, device: torch.device) -> Precision:
    """How the run computes."""
    trainer: L.Trainer = build(
        config.trainer,
        accelerator=device.type,
        devices=1,
        strategy="auto",
        num_nodes=1,
        plugins=build(config.trainer.plugins),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    return trainer.precision_plugin


def weights_of(
    incident: Incident, path: Path, folder: RunFolder, given: str | None
) -> tuple[Path, bool]:
    """The folder of weights to take, and whether they are those before the step.

    Raises:
        CheckpointError: there are none.
    """
    if given is not None:
        return Path(given), False
    if incident.weights is not None:
        return CheckpointFolder(path.parent / incident.weights).verify().path, True
    store = CheckpointStore(folder.checkpoints)
    before = [step for step in store.complete() if step <= incident.step]
    if not before:
        raise CheckpointError(
            f"{path}: neither weights nor a checkpoint before step {incident.step} were kept; "
            "weights=<folder> names others"
        )
    return store.load(before[-1]).path, before[-1] == incident.step


def batch_of(incident: Incident, data: VLMDataModule) -> StepBatch:
    """The step as the rank had it."""
    data.load_state_dict(dict(incident.data_state))
    state = incident.data_state["order"]
    ticket = next(iter(data.planner.tickets(data.samples, state)))
    return data.training_steps(incident.rank, incident.world_size)[ticket]


def take(
    model: Qwen3VL, loss: Loss, batch: StepBatch
) -> tuple[list[SampleLoss], dict[str, float], str | None]:
    """Forward and backward of this rank's share.

    Returns:
        The loss of each sample, the gradient norm of each component (of this share alone), and the module
        in which the first number arose that is not finite.
    """
    samples: list[SampleLoss] = []
    denominator = sum(float(loss.denominator(micro)) for micro in batch.micro_batches)
    with FirstNonFinite(model) as first:
        for number, micro in enumerate(batch.micro_batches):
            result: LossOutput = model(micro, read_out=loss).read_out
            (result.numerator / max(denominator, 1e-8)).backward()  # type: ignore[no-untyped-call]
            assert result.token_nll is not None
            assert micro.sample_ids is not None
            owner = micro.sample_ids.flatten()[micro.scored_index]
            for i, member in enumerate(batch.members[number]):
                mean = float(result.token_nll[owner == i].mean())
                samples.append(
                    SampleLoss(
                        source=member.source,
                        key=member.key,
                        origin=member.origin,
                        micro_batch=number,
                        mean_nll=mean,
                    )
                )
    squares: dict[str, float] = {}
    components = components_of(model)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            square = float(parameter.grad.double().square().sum())
            squares[components[name]] = squares.get(components[name], 0.0) + square
    return samples, {name: math.sqrt(square) for name, square in squares.items()}, first.found


def table_of(samples: list[SampleLoss], most: int = 10) -> Table:
    """Samples with the largest loss, or none, first."""
    table = Table("source", "key", "micro-batch", "loss", "from", box=None, title_justify="left")
    table.title = f"the {min(most, len(samples))} samples with the largest loss, of {len(samples)}"

    def badness(sample: SampleLoss) -> float:
        return sample.mean_nll if math.isfinite(sample.mean_nll) else math.inf

    for sample in sorted(samples, key=badness, reverse=True)[:most]:
        table.add_row(
            sample.source,
            str(sample.key),
            str(sample.micro_batch),
            f"{sample.mean_nll:.4f}",
            sample.origin,
        )
    return table


def norms_table(norms: dict[str, float], incident: Incident) -> Table:
    """Gradient norms beside those of the run."""
    table = Table("component", "now (this rank)", "then (all ranks)", box=None)
    for name, norm in norms.items():
        table.add_row(name, f"{norm:.6g}", f"{incident.grad_norms.get(name, math.nan):.6g}")
    return table


if __name__ == "__main__":
    main()
