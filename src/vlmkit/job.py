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
from vlmkit.checkpoint.folder import SHARD_BYTES
from vlmkit.checkpoint.later_tensor import give_parts
from vlmkit.checkpoint.run_folder import WEIGHTS, RunFolder
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.errors import ConfigError
from vlmkit.initialization import materialize
from vlmkit.runs import fill_from
from vlmkit.training.averaging import WeightAverage
from vlmkit.training.checkpoint_io import SafeCheckpointIO
from vlmkit.training.guarded_logger import GuardedLogger
from vlmkit.training.memory import check_fits, count_parameters
from vlmkit.training.parallel.choice import strategy_for
from vlmkit.training.parallel.divide import DivideModule
from vlmkit.training.parallel.launch import processes_for
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.strategy import MeshStrategy
from vlmkit.training.parallel.whole import divided_state, whole_state
from vlmkit.training.policy import TrainingPolicy
from vlmkit.training.precision import BFloat16Precision, check_precision
from vlmkit.training.sections import Sections
from vlmkit.training.stepped_module import SteppedModule
from vlmkit.training.survival.rank_agreement import RankAgreement

log = logging.getLogger(__name__)

CHANGES = ("compile", "recompute")
"""Groups whose options change the blocks of a built model in place, in this order."""
NOT_HASHED = (
    "run",
    "run_dir",
    "resume",
    "trainer",
    "parallel",
    "logger",
    "callbacks",
    "checkpointing",
    *("gpu", "planning", "dry_run", "benchmark_root", "benchmarks", "edition"),
)
"""What may differ between a run and its continuation without being another experiment."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that `trainer.fit` needs."""

    config: DictConfig
    folder: RunFolder
    trainer: L.Trainer
    module: SteppedModule
    data: VLMDataModule

    @property
    def is_divided(self) -> bool:
        """Whether each rank holds only its part of the model."""
        return isinstance(self.trainer.strategy, MeshStrategy)

    def whole_model(self) -> nn.Module:
        """The model with whole weights, for use on the first rank; all ranks must call this.

        Not needed to write weights: see `export`.

        A model that is divided is put together on the first rank's host, beside the parts; the other ranks
        get theirs.
        """
        model: nn.Module = self.module.model
        if not self.is_divided:
            return model
        state = whole_state(model)
        if not self.trainer.is_global_zero:
            return model
        dtype = next(model.parameters()).dtype
        whole = build_model(config=self.config, device="meta", dtype=dtype)
        materialize(whole, "cpu")
        if (adapters := build(self.config.lora)) is not None:
            adapters(whole)
        whole.load_state_dict(state)
        return whole.eval()

    def export(self, whole: nn.Module | None) -> None:
        """Write the weights of the finished run; all ranks must call this.

        Args:
            whole: the model on the first rank. None: divided weights are put together tensor by tensor, so
                that no host holds the model.
        """
        weights = divided_state(self.module.model) if whole is None else whole.state_dict()
        try:
            if self.trainer.is_global_zero:
                self.folder.export(weights, self.trainer.global_step)
        finally:
            give_parts({WEIGHTS: weights}, SHARD_BYTES)


def assemble(config: DictConfig, is_resumed: bool = False) -> TrainingJob:
    """Build trainer, data, model and module.

    Args:
        config: of the run.
        is_resumed: whether a checkpoint of the run will be loaded, so that `start_from` need not be there.

    Raises:
        UserError: something does not exist, fit together or fit into memory; says what would.
    """
    L.seed_everything(config.seed, verbose=False)
    layout: Layout = build(config.parallel)
    check_strategy(config)
    processes = processes_for(layout, config.trainer.devices, config.trainer.num_nodes)
    changes = [change for name in CHANGES if (change := build(config[name])) is not None]
    plugins = build(config.trainer.plugins) or []
    callbacks = [part for part in build(config.callbacks).values() if part is not None]
    for callback in callbacks:
        if isinstance(callback, RankAgreement):
            callback.config_hash = config_hash(config)
    strategy = strategy_for(layout, DivideModule(changes))
    files = SafeCheckpointIO(
        config_hash=config_hash(config), verify=False, copied=not isinstance(strategy, MeshStrategy)
    )
    trainer: L.Trainer = build(
        config.trainer,
        **processes,
        strategy=strategy,
        logger=[GuardedLogger(logger) for logger in build(config.logger).values()],
        callbacks=callbacks,
        plugins=[*plugins, files],
    )
    check_precision(trainer)
    if isinstance(trainer.strategy, MeshStrategy) and any(
        isinstance(callback, WeightAverage) for callback in callbacks
    ):
        raise ConfigError(
            "averaging keeps whole weights: take averaging=none, parallel=ddp or parallel=single"
        )
    model = model_that_fits(config, trainer, layout)
    if config.start_from.folder is not None and not is_resumed:
        fill_from(model, config.start_from.folder, config.start_from.only)
    if (adapters := build(config.lora)) is not None:
        adapters(model)
    if not isinstance(
        trainer.strategy, MeshStrategy
    ):  # which makes them when it has divided the model
        for change in changes:
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


def check_strategy(config: DictConfig) -> None:
    """Refuse a strategy beside the layout.

    Raises:
        ConfigError: names the group that decides.
    """
    if "strategy" in config.trainer:
        raise ConfigError(
            f"trainer.strategy={config.trainer.strategy}: parallel= decides how ranks divide the work, "
            "such as parallel=ddp or parallel=fsdp"
        )


def model_that_fits(config: DictConfig, trainer: L.Trainer, layout: Layout) -> nn.Module:
    """Build on meta, refuse what the device cannot hold, then build for real.

    A model that is to be divided is built on the host, from where each rank takes its part.

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
        divided_by=layout.for_ranks(trainer.world_size).weight_parts,
    )
    log.info("%d parameters; training state %.2f GiB", state.num_parameters, state.total_gib)
    if isinstance(trainer.strategy, MeshStrategy):
        device = torch.device("cpu")
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
