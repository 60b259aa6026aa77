"""Config -> the parts of a training job, built in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vlmkit.build import build, build_model, options_of
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.errors import ConfigError
from vlmkit.runs import fill_from
from vlmkit.training.checkpoint_io import SafeCheckpointIO
from vlmkit.training.guarded_logger import GuardedLogger
from vlmkit.training.memory import check_fits, count_parameters
from vlmkit.training.policy import TrainingPolicy
from vlmkit.training.precision import BFloat16Precision, check_precision
from vlmkit.training.sections import Sections
from vlmkit.training.stepped_module import SteppedModule
from vlmkit.training.survival.rank_agreement import RankAgreement

log = logging.getLogger(__name__)

CHANGES = ("lora", "compile", "recompute")
"""Groups whose options change the blocks of a built model in place, in this order."""
NOT_HASHED = ("run", "run_dir", "resume", "trainer", "logger", "callbacks", "checkpointing")
"""What may differ between a run and its continuation without being another experiment."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that `trainer.fit` needs."""

    config: DictConfig
    folder: RunFolder
    trainer: L.Trainer
    module: SteppedModule
    data: VLMDataModule


def assemble(config: DictConfig, is_resumed: bool = False) -> TrainingJob:
    """Build trainer, data, model and module.

    Args:
        config: of the run.
        is_resumed: whether a checkpoint of the run will be loaded, so that `start_from` need not be there.

    Raises:
        UserError: something does not exist, fit together or fit into memory; says what would.
    """
    L.seed_everything(config.seed, verbose=False)
    plugins = build(config.trainer.plugins) or []
    callbacks = [part for part in build(config.callbacks).values() if part is not None]
    for callback in callbacks:
        if isinstance(callback, RankAgreement):
            callback.config_hash = config_hash(config)
    trainer: L.Trainer = build(
        config.trainer,
        logger=[GuardedLogger(logger) for logger in build(config.logger).values()],
        callbacks=callbacks,
        plugins=[*plugins, SafeCheckpointIO(config_hash=config_hash(config), verify=False)],
    )
    check_precision(trainer)
    model = model_that_fits(config, trainer)
    if config.start_from.folder is not None and not is_resumed:
        fill_from(model, config.start_from.folder, config.start_from.only)
    for name in CHANGES:
        if (change := build(config[name])) is not None:
            change(model)
    data: VLMDataModule = build(config.data)
    check_vocabulary(model, data)
    module: SteppedModule = build(
        config.module,
        model=model,
        validation_names=list(data.validation),
        source_names=data.mixture.names,
        sections=Sections(),
    )
    return TrainingJob(
        config=config, folder=RunFolder(config.run_dir), trainer=trainer, module=module, data=data
    )


def is_rank_zero() -> bool:
    """Whether this process leads, known before processes have been joined."""
    return int(rank_zero_only.rank or 0) == 0  # type: ignore[attr-defined]


def check_run_folder_is_shared(config: DictConfig) -> None:
    """Refuse processes that torchrun or SLURM has started and that would name a run folder each.

    Raises:
        ConfigError: no run_dir is given.
    """
    if not OmegaConf.is_interpolation(config, "run_dir"):
        return
    for launcher in (TorchElasticEnvironment, SLURMEnvironment):
        if launcher.detect() and (num_processes := launcher().world_size()) > 1:
            raise ConfigError(
                f"{num_processes} processes were started, and each would name its run folder after its own "
                "clock: give run_dir=<folder>"
            )


def config_hash(config: DictConfig) -> str:
    """A short hash of what makes the experiment."""
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(key) for key in config if key not in NOT_HASHED])
    )
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def model_that_fits(config: DictConfig, trainer: L.Trainer) -> nn.Module:
    """Build on meta, refuse what the device cannot hold, then build for real.

    Raises:
        DoesNotFitError: with the numbers, what would fit, and the flags to try.
    """
    device = trainer.strategy.root_device
    bf16 = isinstance(trainer.precision_plugin, BFloat16Precision)
    on_meta = build_model(config=config, device="meta")
    if config.lora is None:  # with adapters less is trained than the policy says
        policy: TrainingPolicy = build(config.weight_update.policy)
        policy.freeze(on_meta)
    state = check_fits(
        on_meta,
        device,
        bf16_weights=bf16,
        smaller=options_of("model"),
        parameters_of=lambda size: count_parameters(build_model(f"model={size}", device="meta")),
    )
    log.info("%d parameters; training state %.2f GiB", state.num_parameters, state.total_gib)
    return build_model(config=config, device=device, dtype=torch.bfloat16 if bf16 else None)


def check_vocabulary(model: nn.Module, data: VLMDataModule) -> None:
    """Refuse a tokenizer that writes ids which the embedding does not have.

    Raises:
        ConfigError: names both sizes.
    """
    ids, rows = data.processor.tokenizer.get_vocab_size(), int(model.vocab_size)  # type: ignore[arg-type]
    if ids > rows:
        raise ConfigError(
            f"the tokenizer has {ids} ids, the embedding {rows} rows: raise size.vocab_size, or lower "
            "size.vocab_ranks"
        )
