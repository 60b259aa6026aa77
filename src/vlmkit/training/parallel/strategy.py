"""Lightning's model-parallel strategy for as many axes as a `Layout` has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from vlmkit.training.checkpoint_io import SafeCheckpointIO
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.sharding import reshard, without_exchange
from vlmkit.training.parallel.whole import (
    divided_optimizer_state,
    divided_state,
    load_whole,
    load_whole_optimizer,
)
from vlmkit.training.rank_groups import RankGroups

Divide = Callable[[Any, Meshes], None]
"""Changes a training module in place, so that each rank keeps its part; called once on every rank."""


class MeshStrategy(ModelParallelStrategy):
    """Divides a module's model over the ranks of a layout when a trainer sets it up.

    Lightning's own strategy knows two axes, and asks the module to divide itself.
    """

    def __init__(
        self, layout: Layout, divide: Divide, timeout: timedelta = timedelta(minutes=30)
    ) -> None:
        """Keep the parts.

        Args:
            layout: along which axes ranks divide the work.
            divide: does it.
            timeout: of a collective; longer than the watchdog's limit of `collective`.
        """
        super().__init__(timeout=timeout)
        self.layout, self.divide = layout, divide
        self._meshes: Meshes | None = None
        self._is_divided = False

    @property
    def meshes(self) -> Meshes:
        """Groups of ranks.

        Raises:
            RuntimeError: the processes have not been joined yet.
        """
        if self._meshes is None:
            raise RuntimeError("ranks are grouped when a trainer sets the strategy up")
        return self._meshes

    @property
    def ranks(self) -> RankGroups:
        """Who takes a step with this rank."""
        meshes = self.meshes
        parts = (meshes.context, meshes.dense["pipeline"])
        return RankGroups(
            sample_rank=meshes.samples.get_local_rank(),
            num_sample_ranks=meshes.samples.size(),
            token_rank=meshes.tokens.get_local_rank(),
            averaged_over=meshes.tokens.size(),
            samples=meshes.samples.get_group(),
            parts=tuple(mesh.get_group() for mesh in parts if mesh.size() > 1),
            stages=(meshes.dense["pipeline"].get_group(),) if meshes.layout.pipeline > 1 else (),
            share_samples=meshes.layout.world_size > meshes.samples.size(),
        )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Shares of the samples of a step."""
        ranks = self.ranks
        return {"num_replicas": ranks.num_sample_ranks, "rank": ranks.sample_rank}

    def setup_environment(self) -> None:
        """Join the processes and group them."""
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self._setup_distributed()
        if self._meshes is None:
            self._meshes = Meshes.make(self.layout, self.root_device.type)

    def setup(self, trainer: L.Trainer) -> None:
        """Divide the module, and make its optimisers."""
        module = self.lightning_module
        assert module is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        if not self._is_divided:
            self.divide(module, self.meshes)
            self._is_divided = True
        self.model = self.precision_plugin.convert_module(module)
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if trainer.state.fn == TrainerFn.FITTING:
            _optimizers_to_device(self.optimizers, self.root_device)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Leave weights as they are between steps."""
        assert self.lightning_module is not None
        result = super().validation_step(*args, **kwargs)
        reshard(self.lightning_module)
        return result

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Checkpoints hold whole tensors, and Lightning hands them on."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """See `divided_state`."""
        assert self.lightning_module is not None
        return divided_state(self.lightning_module)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """See `divided_optimizer_state`."""
        own = getattr(optimizer, "optimizer", optimizer)
        return divided_optimizer_state(own, *self.ranks.stages)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write on the first rank; all give their parts of one tensor after the other."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)
        else:
            assert isinstance(self.checkpoint_io, SafeCheckpointIO)
            self.checkpoint_io.give_parts(checkpoint)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read on every rank, which then keeps its part."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """See `load_whole`."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """See `load_whole_optimizer`."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole_optimizer(optimizer, state, *self.ranks.stages)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """See `without_exchange`."""
        assert self.lightning_module is not None
        with without_exchange(self.lightning_module.model, self.meshes.layout):  # type: ignore[arg-type]
            yield
