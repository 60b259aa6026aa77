"""Lightning's checkpoints as folders of safetensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.fabric.plugins import CheckpointIO

from vlmkit.checkpoint.atomic import remove_folder
from vlmkit.checkpoint.folder import SHARD_BYTES, CheckpointFolder, writing_checkpoint
from vlmkit.checkpoint.later_tensor import AnyTensor, LaterTensor, give_parts
from vlmkit.checkpoint.manifest import MANIFEST
from vlmkit.checkpoint.store import step_of
from vlmkit.errors import CheckpointError
from vlmkit.training.optimizer_state import join_states, split_states

MODEL, OPTIMIZER = "model", "optimizer"  # files
WEIGHTS, STATES = "state_dict", "optimizer_states"  # keys of Lightning


class SafeCheckpointIO(CheckpointIO):
    """Plugin of the trainer: `save_checkpoint(folder)` and `fit(ckpt_path=folder)` read and write them.

    `model.safetensors` holds the weights under the model's own names, `optimizer.safetensors` the moments by
    parameter and slot, `state.json` everything else. No pickle is written or read. One rank writes, all
    read.
    """

    def __init__(
        self,
        config_hash: str | None = None,
        prefix: str = "model.",
        shard_bytes: int = SHARD_BYTES,
        verify: bool = True,
        copied: bool = True,
    ) -> None:
        """Keep the settings.

        Args:
            config_hash: of what decides how the run goes; goes into the manifest.
            prefix: of the model's weights among those of the LightningModule.
            shard_bytes: tensors are split into files of at most this many bytes.
            verify: whether reading compares every byte with the manifest. Sizes are always compared.
            copied: see `CheckpointFolder.tensors`. Ranks that copy their parts of what they load at once
                need no copy of the whole.
        """
        self.config_hash, self.prefix = config_hash, prefix
        self.shard_bytes, self.verify, self.copied = shard_bytes, verify, copied

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write what Lightning has collected; called on one rank, while the others `give_parts`.

        Tensors that are divided over ranks are put together one at a time, as they are written.

        Raises:
            DiskFullError: there is no room.
            CheckpointError: the disk refuses, or a value cannot be written.
        """
        if storage_options is not None:
            raise TypeError("a checkpoint folder has no storage_options")
        path = Path(path)
        tensors, state = self._split(checkpoint)
        step = step_of(path.name)
        try:
            with writing_checkpoint(
                path,
                checkpoint["global_step"] if step is None else step,
                world_size=_world_size(),
                config_hash=self.config_hash,
                needed_bytes=sum(t.nbytes for group in tensors.values() for t in group.values()),
                shard_bytes=self.shard_bytes,
            ) as writer:
                for stem, group in tensors.items():
                    writer.write_tensors(stem, group)
                writer.write_state(state)
        finally:  # where writing has failed, the others do not know
            give_parts(tensors, self.shard_bytes)

    def give_parts(self, checkpoint: Mapping[str, Any]) -> None:
        """What ranks do that write nothing, while one calls `save_checkpoint`."""
        give_parts(self._split(checkpoint)[0], self.shard_bytes)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What Lightning had gathered, on the host.

        Args:
            path: the folder.
            map_location: ignored; strategies move what they load.
            weights_only: ignored; nothing here is pickled.

        Raises:
            CheckpointError: a file is missing or damaged; names it.
        """
        if Path(path).is_file():
            raise CheckpointError(
                f"{path} is a file; checkpoints are folders with a {MANIFEST}, and pickles are not read, "
                "since reading one can run any code"
            )
        folder = CheckpointFolder(path)
        if self.verify:
            folder.verify()
        return self._join(folder)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint folder; one that is gone already is no error.

        Raises:
            CheckpointError: it is something else, or the disk refuses.
        """
        path = Path(path)
        if not path.exists():
            return
        if not (path / MANIFEST).is_file():
            raise CheckpointError(
                f"{path} is not deleted: without a {MANIFEST} it is no checkpoint"
            )
        try:
            remove_folder(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be deleted: {error}") from error

    def _split(
        self, checkpoint: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, AnyTensor]], dict[str, Any]]:
        """Tensors by file, and the rest."""
        weights, tied, others = split_weights(checkpoint[WEIGHTS], self.prefix)
        tensors: dict[str, dict[str, AnyTensor]] = {MODEL: weights}
        state: dict[str, Any] = {
            "trainer": {k: v for k, v in checkpoint.items() if k not in (WEIGHTS, STATES)},
            "module": {"prefix": self.prefix, "tied": tied, "others": others},
        }
        if STATES in checkpoint:
            tensors[OPTIMIZER], state["optimizers"] = split_states(checkpoint[STATES])
        return tensors, state

    def _join(self, folder: CheckpointFolder) -> dict[str, Any]:
        state = folder.state()
        checkpoint: dict[str, Any] = state["trainer"]
        module = state["module"]
        weights = folder.tensors(MODEL, self.copied)
        weights |= {alias: weights[name] for alias, name in module["tied"].items()}
        prefix = module["prefix"]
        checkpoint[WEIGHTS] = {prefix + name: tensor for name, tensor in weights.items()}
        checkpoint[WEIGHTS] |= module["others"]
        if "optimizers" in state:
            checkpoint[STATES] = join_states(
                folder.tensors(OPTIMIZER, self.copied), state["optimizers"]
            )
        return checkpoint


def split_weights(
    state_dict: Mapping[str, Any], prefix: str
) -> tuple[dict[str, AnyTensor], dict[str, str], dict[str, Any]]:
    """Divide the state of a LightningModule.

    Returns:
        The model's tensors without the prefix, each once; names of those that are the same tensor as
        another, with the other's name; and what is not the model's, as it was.
    """
    weights: dict[str, AnyTensor] = {}
    tied: dict[str, str] = {}
    others: dict[str, Any] = {}
    first: dict[Any, str] = {}
    for key, value in state_dict.items():
        if not key.startswith(prefix) or not isinstance(value, AnyTensor):
            others[key] = value
            continue
        name = key.removeprefix(prefix)
        if isinstance(value, LaterTensor):
            weights[name] = value
            continue
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and first.setdefault(place, name) != name:
            tied[name] = first[place]
        else:
            weights[name] = value
    return weights, tied, others


def _world_size() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1
